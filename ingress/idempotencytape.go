package ingress

import (
	"bytes"
	"net/http"
	"strings"

	"sluice/internal/openaiapi"
	"sluice/store"
)

// tape records an answer while it is given. An answer that is written whole is held back
// until deliver, one that is flushed goes out as it comes. A client that is gone is no
// reason to stop: another one will ask.
type tape struct {
	to     http.ResponseWriter
	memory share

	status int
	body   []byte
	lost   bool // the answer is too large, or there is no memory for it
	live   bool // what is written goes out at once
	gone   bool // the client takes nothing any more
	whole  bool // the handler has returned
}

// Header implements http.ResponseWriter.
func (t *tape) Header() http.Header { return t.to.Header() }

// Unwrap lets http.ResponseController set the connection's deadlines.
func (t *tape) Unwrap() http.ResponseWriter { return t.to }

// WriteHeader implements http.ResponseWriter.
func (t *tape) WriteHeader(status int) {
	if t.status != 0 || status < http.StatusOK {
		return
	}
	t.status = status
	if t.live {
		t.to.WriteHeader(status)
	}
}

// Write implements http.ResponseWriter.
func (t *tape) Write(p []byte) (int, error) {
	t.WriteHeader(http.StatusOK)
	if !t.lost && !t.record(p) {
		t.deliver()
		t.lost, t.body = true, nil
		t.memory.release()
	}
	if t.live {
		t.send(p)
	}
	return len(p), nil
}

// record appends to the body, if there is room.
func (t *tape) record(p []byte) bool {
	need := len(t.body) + len(p)
	if need > store.MaxAnswerBytes {
		return false
	}
	if need > cap(t.body) {
		grown := max(need, min(2*cap(t.body), store.MaxAnswerBytes))
		if !t.memory.grow(int64(grown - cap(t.body))) {
			return false
		}
		t.body = append(make([]byte, 0, grown), t.body...)
	}
	t.body = append(t.body, p...)
	return true
}

// deliver sends what was held back, and has the rest go out as it comes.
func (t *tape) deliver() {
	if t.live {
		return
	}
	t.live = true
	if t.status != 0 {
		limitWrite(t.to)
		t.to.WriteHeader(t.status)
		t.send(t.body)
	}
}

func (t *tape) send(p []byte) {
	if t.gone || len(p) == 0 {
		return
	}
	_, err := t.to.Write(p)
	t.gone = err != nil
}

// FlushError implements what http.ResponseController flushes by.
func (t *tape) FlushError() error {
	t.WriteHeader(http.StatusOK)
	t.deliver()
	if !t.gone {
		t.gone = http.NewResponseController(t.to).Flush() != nil
	}
	return nil
}

// answer returns what was recorded, if all of it was.
func (t *tape) answer() (a store.IdempotentAnswer, recorded bool) {
	if !t.whole || t.lost {
		return store.IdempotentAnswer{}, false
	}
	a = store.IdempotentAnswer{Status: t.status, Header: make(map[string]string), Body: t.body}
	if a.Status == 0 {
		a.Status = http.StatusOK
	}
	header := t.to.Header()
	for name, values := range header {
		name, last := strings.CutPrefix(name, http.TrailerPrefix) // what was told at the end a replay knows from the start
		if tells(name) && (last || header[http.TrailerPrefix+name] == nil) {
			a.Header[name] = strings.Join(values, ", ")
		}
	}
	return a, true
}

// frees reports whether an answer that does not stand for its key leaves nothing that the
// next call would have to find: the job has ended, and a new attempt is another job; or the
// request was refused, and nobody before can have had it accepted.
func frees(a store.IdempotentAnswer, again bool) bool {
	refused := a.Status >= http.StatusBadRequest && a.Status < statusClientClosed
	return a.Header[jobIDHeader] != "" || refused && !again
}

// tells reports whether a header is part of the answer. Others are this connection's or
// this request's own.
func tells(name string) bool {
	switch name {
	case "Age", "Content-Type", "Cache-Control", "Location", "Preference-Applied", "Retry-After", "Retry-After-Ms", "X-Accel-Buffering", "X-Should-Retry":
		return true
	}
	return strings.HasPrefix(name, "X-Sluice-")
}

// keeps reports whether an answer stands for all calls with its key. Nothing else does
// that a new attempt may change: a stream that broke off, a fault that passes, and a
// request that was refused before it was anybody's job.
func keeps(a store.IdempotentAnswer) bool {
	switch {
	case a.Status < http.StatusMultipleChoices:
		return !strings.HasPrefix(a.Header["Content-Type"], eventStream) || bytes.HasSuffix(a.Body, openaiapi.AppendEvent(nil, "", []byte(openaiapi.Done)))
	case a.Status == http.StatusRequestTimeout, a.Status == http.StatusConflict, a.Status == http.StatusTooEarly,
		a.Status == http.StatusTooManyRequests, a.Status >= statusClientClosed:
		return false
	}
	return a.Header[jobIDHeader] != ""
}
