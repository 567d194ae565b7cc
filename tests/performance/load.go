package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// loadSpec tells a load process what to do. It travels as JSON on its stdin.
type loadSpec struct {
	Mode        string        `json:"mode"` // open, closed or streams
	Address     string        `json:"address"`
	Key         string        `json:"key"`
	Rate        float64       `json:"rate,omitempty"` // requests or new streams a second
	Even        bool          `json:"even,omitempty"` // evenly spaced arrivals instead of Poisson
	Seed        uint64        `json:"seed,omitempty"`
	Connections int           `json:"connections"` // closed: all; open: made before the start
	Warmup      time.Duration `json:"warmup"`
	Duration    time.Duration `json:"duration"`
	Patience    time.Duration `json:"patience"` // after which a client gives up
	Streams     int           `json:"streams,omitempty"`
	Tokens      int           `json:"tokens,omitempty"`   // in each stream
	Numbered    bool          `json:"numbered,omitempty"` // open: each request says the how manieth it is
	Distinct    bool          `json:"distinct,omitempty"` // no two requests ask for the same
}

// loadResult is what came of it. Times run from the intended start of a request.
type loadResult struct {
	Seconds      float64        `json:"seconds"`
	Good         int64          `json:"good"` // 200s that arrived within the measured time
	Latency      summary        `json:"latency"`
	Refusals     summary        `json:"refusals"` // 429s
	NoRetryAfter int64          `json:"no_retry_after"`
	FirstToken   summary        `json:"first_token"`
	Gap          summary        `json:"gap"`
	Failures     map[string]int `json:"failures,omitempty"`
}

// The moments of a run that the harness hears of, to look at the system's processes.
const (
	momentBegin  = "begin"  // the measured time begins (open, closed)
	momentEnd    = "end"    // and ends
	momentOpen   = "open"   // every stream has its first token
	momentFinish = "finish" // the first stream has ended
	momentResult = "result"
)

// message is one line on a load process's stdout.
type message struct {
	Moment string      `json:"moment"`
	Result *loadResult `json:"result,omitempty"`
}

// load is one run of the generator.
type load struct {
	loadSpec
	request []byte
	made    atomic.Int64 // requests so far
	begin   time.Time    // of the measured time
	end     time.Time

	latency, refusals, firstToken, gap histogram

	good         atomic.Int64
	noRetryAfter atomic.Int64

	mu       sync.Mutex
	failures map[string]int
	out      *json.Encoder
}

// runLoad is the load process: it reads its orders, makes the load, and tells the
// harness what it saw.
func runLoad(ctx context.Context, in io.Reader, out io.Writer) error {
	debug.SetGCPercent(800) // the generator's own pauses are not what is measured
	l := &load{failures: map[string]int{}, out: json.NewEncoder(out)}
	if err := json.NewDecoder(in).Decode(&l.loadSpec); err != nil {
		return fmt.Errorf("read the load's specification: %w", err)
	}
	l.request = renderRequest(l.loadSpec)
	start := time.Now()
	l.begin = start.Add(l.Warmup)
	l.end = l.begin.Add(l.Duration)
	var err error
	switch l.Mode {
	case "open":
		err = l.runOpen(ctx, start)
	case "closed":
		l.runClosed(ctx)
	case "streams":
		l.runStreams(ctx, start)
	default:
		err = fmt.Errorf("unknown mode %q", l.Mode)
	}
	if err := errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Encode(message{Moment: momentResult, Result: &loadResult{
		Seconds:  l.Duration.Seconds(),
		Good:     l.good.Load(),
		Latency:  l.latency.summary(),
		Refusals: l.refusals.summary(), NoRetryAfter: l.noRetryAfter.Load(),
		FirstToken: l.firstToken.summary(),
		Gap:        l.gap.summary(),
		Failures:   l.failures,
	}})
}

// renderRequest makes the bytes of every request of a run: a prompt of about 1 KB.
func renderRequest(spec loadSpec) []byte {
	prompt := strings.Repeat("The quick brown fox jumps over the lazy dog near the river bank. ", 14)
	body := fmt.Sprintf(`{"model":"bench","messages":[{"role":"system","content":"You are terse."},`+
		`{"role":"user","content":"%s"}],"temperature":0.2`, prompt)
	if spec.Distinct {
		body += `,` + seedMark + strconv.Itoa(firstNumber)
	}
	if spec.Mode == "streams" {
		body += fmt.Sprintf(`,"max_tokens":%d,"stream":true`, spec.Tokens)
	}
	body += "}"
	header := ""
	if spec.Numbered {
		header = numberMark + strconv.Itoa(firstNumber) + "\r\n"
	}
	return fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\n"+
		"Authorization: Bearer %s\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		spec.Address, spec.Key, header, len(body), body)
}

// Every number is as long as the others, so that a request is made by writing it over
// another's.
const (
	firstNumber = 1_000_000
	maxNumbers  = 9 * firstNumber
	numberName  = "X-Request-Id"
	numberHead  = "bench-"
	numberMark  = numberName + ": " + numberHead
	seedMark    = `"seed":`
)

// next returns the request to send now.
func (l *load) next() []byte {
	if !l.Numbered && !l.Distinct {
		return l.request
	}
	n := int(l.made.Add(1) - 1)
	request := l.request
	if l.Numbered {
		request = withNumber(request, numberMark, n)
	}
	if l.Distinct {
		request = withNumber(request, seedMark, n)
	}
	return request
}

// withNumber returns the request with the number n in the place of the one after mark.
func withNumber(request []byte, mark string, n int) []byte {
	request = slices.Clone(request)
	at := bytes.Index(request, []byte(mark)) + len(mark)
	copy(request[at:], strconv.Itoa(firstNumber+n%maxNumbers))
	return request
}

// requestNumber reads it from a request's id.
func requestNumber(id string) (int, bool) {
	digits, found := strings.CutPrefix(id, numberHead)
	n, err := strconv.Atoi(digits)
	return n - firstNumber, found && err == nil && n >= firstNumber
}

// tell reports a moment to the harness. A harness that is gone needs no news, and
// the result's own write says so.
func (l *load) tell(moment string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.out.Encode(message{Moment: moment})
}

// tellWindow reports the measured time's begin and end while the load runs. The
// caller waits for the returned channel.
func (l *load) tellWindow(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if waitUntil(ctx, l.begin) {
			l.tell(momentBegin)
		}
		if waitUntil(ctx, l.end) {
			l.tell(momentEnd)
		}
	}()
	return done
}

func waitUntil(ctx context.Context, t time.Time) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// answered counts one whole answer. It counts only what was intended within the
// measured time, but a wrong answer counts always.
func (l *load) answered(intended, now time.Time, h head, body []byte) {
	measured := !intended.Before(l.begin) && intended.Before(l.end)
	switch {
	case h.status == 200 && !bytes.Contains(body, []byte(answerMark)):
		l.fail("wrong answer")
	case h.status == 200:
		if !now.Before(l.begin) && now.Before(l.end) {
			l.good.Add(1)
		}
		if measured {
			l.latency.record(now.Sub(intended))
		}
	case h.status == 429:
		if !h.retryAfter {
			l.noRetryAfter.Add(1)
		}
		if measured {
			l.refusals.record(now.Sub(intended))
		}
	default:
		l.fail(fmt.Sprintf("status %d", h.status))
	}
}

// fail counts a request that got no proper answer.
func (l *load) fail(why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures[why]++
}
