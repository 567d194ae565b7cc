package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	thinkTime       = 50 * time.Millisecond
	tokenGap        = 20 * time.Millisecond
	maxStreamTokens = 5_000
)

// upstream is the scripted provider behind every system: OpenAI's form of a chat
// completion, plain or streamed, from bytes that were made once. It is written by hand
// for the same reason as the load generator.
type upstream struct {
	script script
	wheel  *wheel
}

// runUpstream is the upstream process. It serves on two ports, the second of which
// thinks before it answers, and on one for each member of the fleet, and prints all
// addresses.
func runUpstream(ctx context.Context, out io.Writer) error {
	debug.SetGCPercent(800)
	u := &upstream{script: newScript()}
	u.wheel = newWheel(u.script)
	members := fleetMembers()
	listeners, addresses, err := listenMany(2 + len(members))
	if err != nil {
		return err
	}
	quick, slow := listeners[0], listeners[1]
	defer context.AfterFunc(ctx, func() { _, _ = quick.Close(), slow.Close() })()
	if _, err := fmt.Fprintln(out, strings.Join(addresses, " ")); err != nil {
		return fmt.Errorf("print addresses: %w", err)
	}
	servers, ctx := errgroup.WithContext(ctx)
	servers.Go(func() error { u.serve(ctx, quick, 0); return nil })
	servers.Go(func() error { u.serve(ctx, slow, thinkTime); return nil })
	servers.Go(func() error { u.wheel.turn(ctx); return nil })
	order := &fleetLog{start: time.Now()}
	for i, m := range members {
		servers.Go(func() error { return serveFleet(ctx, listeners[2+i], m, order) })
	}
	return servers.Wait()
}

func listenMany(n int) (listeners []net.Listener, addresses []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			for _, l := range listeners {
				_ = l.Close() // nobody was told of it
			}
			return nil, nil, fmt.Errorf("listen: %w", err)
		}
		listeners, addresses = append(listeners, l), append(addresses, l.Addr().String())
	}
	return listeners, addresses, nil
}

// serve accepts until the listener closes, and returns when its connections have
// ended.
func (u *upstream) serve(ctx context.Context, listener net.Listener, think time.Duration) {
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		conns.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			_ = u.converse(ctx, conn, think) // the client went away, or speaks nonsense
		})
	}
}

func (u *upstream) converse(ctx context.Context, conn net.Conn, think time.Duration) error {
	reader := bufio.NewReaderSize(conn, readBuffer)
	var body []byte
	for {
		h, err := readRequestHead(reader)
		if err != nil {
			return err
		}
		body = body[:0]
		if h.length > 0 || h.chunked {
			if body, err = readBody(reader, h, body); err != nil {
				return err
			}
		}
		switch h.first {
		case "POST /v1/chat/completions":
			err = u.complete(ctx, conn, body, think)
		case "GET /v1/models":
			_, err = conn.Write(u.script.models)
		default:
			_, err = conn.Write(u.script.notFound)
		}
		if err != nil || h.closes {
			return err
		}
	}
}

func (u *upstream) complete(ctx context.Context, conn net.Conn, body []byte, think time.Duration) error {
	if think > 0 && !waitUntil(ctx, time.Now().Add(think)) {
		return ctx.Err()
	}
	if !bytes.Contains(body, []byte(`"stream":true`)) {
		_, err := conn.Write(u.script.answer)
		return err
	}
	return u.wheel.stream(ctx, conn, requestedTokens(body), bytes.Contains(body, []byte(`"include_usage":true`)))
}

// requestedTokens is the request's max_tokens, or 100.
func requestedTokens(body []byte) int {
	_, rest, _ := bytes.Cut(body, []byte(`"max_tokens":`))
	end := bytes.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	n, err := strconv.Atoi(string(rest[:max(0, end)]))
	if err != nil || n < 1 {
		return 100
	}
	return min(n, maxStreamTokens)
}

// script is every byte that the upstream says.
type script struct {
	answer, models, notFound []byte

	streamHead []byte // up to the first token
	tokens     [][]byte
	streamEnd  []byte
	usageEnd   []byte // the same with usage
}

func newScript() script {
	s := script{
		answer:   rendered(200, plainAnswer()),
		models:   rendered(200, `{"object":"list","data":[{"id":"bench","object":"model","created":1700000000,"owned_by":"bench"}]}`),
		notFound: rendered(404, `{"error":{"message":"no such path","type":"invalid_request_error","param":null,"code":"not_found"}}`),
		streamHead: fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"+
			"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n%s", frame(choice(`{"role":"assistant","content":""}`, "null"))),
	}
	for n := range maxStreamTokens {
		token := fmt.Sprintf(`{%s%0*d"}`, tokenMark, tokenDigits, n)
		s.tokens = append(s.tokens, frame(choice(token, "null")))
	}
	finish := frame(choice("{}", `"length"`))
	usage := frame(`"choices":[],"usage":{"prompt_tokens":210,"completion_tokens":100,"total_tokens":310}`)
	last := "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
	s.streamEnd = bytes.Join([][]byte{finish, []byte(last)}, nil)
	s.usageEnd = bytes.Join([][]byte{finish, usage, []byte(last)}, nil)
	return s
}

func plainAnswer() string {
	return `{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench","choices":[{"index":0,` +
		`"message":{"role":"assistant","content":"A ` + answerMark + `: the fox was quick, the dog was not, and the river went by."},` +
		`"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":210,"completion_tokens":24,"total_tokens":234},` +
		`"system_fingerprint":"fp_bench"}`
}

func rendered(status int, body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %d Scripted\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		status, len(body), body)
}

func choice(delta, finish string) string {
	return `"choices":[{"index":0,"delta":` + delta + `,"finish_reason":` + finish + `}]`
}

// frame makes one server-sent event in a chunk of its own.
func frame(fields string) []byte {
	event := `data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench",` +
		fields + "}\n\n"
	return fmt.Appendf(nil, "%x\r\n%s\r\n", len(event), event)
}
