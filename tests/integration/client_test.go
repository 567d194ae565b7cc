package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/require"
)

const (
	chatPath   = "/v1/chat/completions"
	plainBody  = `{"model":"m","messages":[{"role":"user","content":"` + canary + `"}]}`
	streamBody = `{"model":"m","stream":true,"messages":[{"role":"user","content":"` + canary + `"}]}`
)

// client returns the official client, pointed at the first ingress.
func (s *stack) client() openai.Client {
	return openai.NewClient(
		option.WithBaseURL(s.doors[0].url+"/v1"), option.WithAPIKey(s.secret), option.WithMaxRetries(0), option.WithHTTPClient(s.http),
	)
}

func ask(model string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(canary)}}
}

// send makes one request. Headers come in pairs; one of Authorization replaces the
// stack's key.
func (s *stack) send(ctx context.Context, method, url, body string, headers ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+s.secret)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return s.http.Do(req)
}

// answer is a response that was read to its end.
type answer struct {
	status int
	header http.Header
	body   string
}

// do makes a request and reads the whole answer.
func (s *stack) do(door int, method, path, body string, headers ...string) answer {
	s.t.Helper()
	a, err := s.try(s.t.Context(), door, method, path, body, headers...)
	require.NoError(s.t, err)
	return a
}

func (s *stack) chat(body string, headers ...string) answer {
	s.t.Helper()
	return s.do(0, http.MethodPost, chatPath, body, headers...)
}

func (s *stack) try(ctx context.Context, door int, method, path, body string, headers ...string) (answer, error) {
	resp, err := s.send(ctx, method, s.doors[door].url+path, body, headers...)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(text)}, err
}

// fault is the one shape of an error.
type fault struct {
	Message string         `json:"message"`
	Type    string         `json:"type"`
	Code    string         `json:"code"`
	Param   *string        `json:"param"`
	Details map[string]any `json:"details"`
}

// fault reads the answer as an error and holds it to the shape.
func (s *stack) fault(body string) fault {
	s.t.Helper()
	var whole map[string]map[string]json.RawMessage
	require.NoError(s.t, json.Unmarshal([]byte(body), &whole), body)
	for _, field := range []string{"message", "type", "code", "param", "details"} {
		require.Contains(s.t, whole["error"], field, body)
	}
	var f struct {
		Error fault `json:"error"`
	}
	require.NoError(s.t, json.Unmarshal([]byte(body), &f))
	require.NotEmpty(s.t, f.Error.Message)
	return f.Error
}

// readiness is what GET /readyz says.
type readiness struct {
	code      int
	Status    string            `json:"status"`
	Checks    map[string]string `json:"checks"`
	Providers map[string]struct {
		Workers int    `json:"workers"`
		Status  string `json:"status"`
	} `json:"providers"`
}

func (s *stack) ready(door int) readiness {
	s.t.Helper()
	a := s.do(door, http.MethodGet, "/readyz", "")
	r := readiness{code: a.status}
	require.NoError(s.t, json.Unmarshal([]byte(a.body), &r), a.body)
	return r
}

// event is one event of a stream, or a comment.
type event struct {
	id, data, comment string
}

// sse reads a stream.
type sse struct {
	s    *stack
	resp *http.Response
	r    *bufio.Reader
	stop context.CancelFunc
}

// open makes a request whose answer is read event by event. The stream is closed
// with the test, or by drop.
func (s *stack) open(door int, method, path, body string, headers ...string) *sse {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	resp, err := s.send(ctx, method, s.doors[door].url+path, body, headers...)
	if err != nil {
		cancel()
	}
	require.NoError(s.t, err)
	st := &sse{s: s, resp: resp, r: bufio.NewReaderSize(resp.Body, 4<<10), stop: cancel}
	s.t.Cleanup(st.drop)
	return st
}

// stream asks for a streamed answer.
func (s *stack) stream(body string, headers ...string) *sse {
	s.t.Helper()
	st := s.open(0, http.MethodPost, chatPath, body, headers...)
	require.Equal(s.t, http.StatusOK, st.resp.StatusCode)
	require.Contains(s.t, st.resp.Header.Get("Content-Type"), "text/event-stream")
	return st
}

// resume asks an ingress for a job's events from behind the id on.
func (s *stack) resume(door int, job, after string) *sse {
	s.t.Helper()
	var headers []string
	if after != "" {
		headers = append(headers, "Last-Event-ID", after)
	}
	return s.open(door, http.MethodGet, chatPath+"/"+job+"/events", "", headers...)
}

func (st *sse) job() string { return st.resp.Header.Get("X-Sluice-Job-Id") }

// drop hangs up.
func (st *sse) drop() {
	st.stop()
	_ = st.resp.Body.Close()
}

// next returns the next event or comment; io.EOF after the last.
func (st *sse) next() (event, error) {
	var e event
	for {
		line, err := st.r.ReadString('\n')
		if err != nil {
			if errors.Is(err, io.EOF) && line == "" && e == (event{}) {
				return e, io.EOF
			}
			return e, errors.Join(errors.New("stream broke in the middle"), err)
		}
		line = strings.TrimSuffix(line, "\n")
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			return e, nil
		case name == "":
			e.comment = value
		case name == "id":
			e.id = value
		case name == "data":
			e.data += value
		}
	}
}

// event returns the next event that is no comment.
func (st *sse) event() event {
	st.s.t.Helper()
	for {
		e, err := st.next()
		require.NoError(st.s.t, err)
		if e.comment == "" {
			return e
		}
	}
}

// events returns the next n events.
func (st *sse) events(n int) []event {
	st.s.t.Helper()
	list := make([]event, 0, n)
	for range n {
		list = append(list, st.event())
	}
	return list
}

// rest returns all events to the end.
func (st *sse) rest() []event {
	st.s.t.Helper()
	list, err := st.all()
	require.NoError(st.s.t, err)
	return list
}

func (st *sse) all() ([]event, error) {
	var list []event
	for {
		e, err := st.next()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		if e.comment == "" {
			list = append(list, e)
		}
	}
}

// datas returns the events' payloads.
func datas(events []event) []string {
	list := make([]string, 0, len(events))
	for _, e := range events {
		list = append(list, e.data)
	}
	return list
}

// content returns the text that the chunks add up to.
func (s *stack) content(events []event) string {
	s.t.Helper()
	var text strings.Builder
	for _, e := range events {
		if e.data == "[DONE]" {
			continue
		}
		var c openai.ChatCompletionChunk
		require.NoError(s.t, json.Unmarshal([]byte(e.data), &c), e.data)
		for _, choice := range c.Choices {
			text.WriteString(choice.Delta.Content)
		}
	}
	return text.String()
}

// blobs lists what the queue's object store holds.
func (s *stack) blobs() []string {
	s.t.Helper()
	nc, err := nats.Connect(s.opt.natsURL)
	require.NoError(s.t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(s.t, err)
	bucket, err := js.ObjectStore(s.t.Context(), "SLUICE_BLOBS")
	require.NoError(s.t, err)
	list, err := bucket.List(s.t.Context())
	if errors.Is(err, jetstream.ErrNoObjectsFound) {
		return nil
	}
	require.NoError(s.t, err)
	names := make([]string, 0, len(list))
	for _, o := range list {
		names = append(names, o.Name)
	}
	return names
}
