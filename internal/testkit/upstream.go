package testkit

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	upstreamMaxBody = 64 << 20
	upstreamPatient = 15 * time.Second
)

// Upstream is an OpenAI-compatible endpoint on loopback whose behaviour a test
// scripts, call by call. It keeps every request as it came, and notes when it sees
// that a client has gone. Without a script it answers each chat completion with
// three words, streamed or not, as it was asked.
//
// Its methods are safe for concurrent use; those whose name begins with Await fail
// the test and so belong on the test's goroutine.
type Upstream struct {
	t       testing.TB
	address string
	server  *httptest.Server // that runs now
	closed  chan struct{}    // frees every handler that waits

	mu          sync.Mutex
	changed     chan struct{} // closed and replaced at each change that Await may look at
	script      func(*Call)
	models      []string
	requests    []Request
	inFlight    int
	mostAtOnce  int
	disconnects []time.Time
	open        int
	opened      int
}

// Request is one request as the upstream received it.
type Request struct {
	Method  string
	Path    string
	Query   string
	Header  http.Header
	Body    []byte
	Arrived time.Time
}

// NewUpstream starts an upstream that ends with the test.
func NewUpstream(t testing.TB) *Upstream {
	t.Helper()
	u := &Upstream{t: t, closed: make(chan struct{}), changed: make(chan struct{})}
	u.script = func(c *Call) { c.Reply("Hello", " there", ".") }
	u.serveAt("127.0.0.1:0")
	u.address = u.server.Listener.Addr().String()
	t.Cleanup(func() { close(u.closed) }) // comes before the servers' own
	return u
}

// serveAt starts a server that ends with the test.
func (u *Upstream) serveAt(address string) {
	u.t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		u.t.Fatalf("start upstream: %v", err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(u.serve))
	_ = server.Listener.Close() // one of its own choice
	server.Listener = l
	server.Config.ConnState = u.connState
	server.Start()
	u.t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	u.server = server
}

// URL returns the base address, which ends in /v1.
func (u *Upstream) URL() string { return "http://" + u.address + "/v1" }

// Die cuts all connections and refuses new ones, as a process that is killed. It belongs
// on the test's goroutine, as Revive does.
func (u *Upstream) Die() {
	_ = u.server.Listener.Close() // it fails only when it is closed
	u.server.CloseClientConnections()
}

// Revive serves again at the same address.
func (u *Upstream) Revive() { u.t.Helper(); u.serveAt(u.address) }

// Handle sets what happens at each call from now on. The handler runs on the call's
// own goroutine; when it returns, the answer ends.
func (u *Upstream) Handle(script func(*Call)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.script = script
}

// SetModels makes GET /v1/models list these names instead of reaching the script.
func (u *Upstream) SetModels(ids ...string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.models = ids
}

// Requests returns every request so far, in the order of arrival.
func (u *Upstream) Requests() []Request {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.requests)
}

// Last returns the latest request; the zero Request when there was none.
func (u *Upstream) Last() Request {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.requests) == 0 {
		return Request{}
	}
	return u.requests[len(u.requests)-1]
}

// Count returns how many requests have arrived.
func (u *Upstream) Count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.requests)
}

// InFlight returns how many calls are being answered.
func (u *Upstream) InFlight() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.inFlight
}

// MostInFlight returns the largest number of calls ever answered at the same time.
func (u *Upstream) MostInFlight() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.mostAtOnce
}

// Connections returns how many connections are open, and how many ever were opened.
func (u *Upstream) Connections() (open, opened int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.open, u.opened
}

// AwaitCount waits until n requests have arrived.
func (u *Upstream) AwaitCount(n int) {
	u.t.Helper()
	u.await("requests to arrive", func() bool { return len(u.requests) >= n })
}

// AwaitIdle waits until no call is in flight.
func (u *Upstream) AwaitIdle() {
	u.t.Helper()
	u.await("calls to end", func() bool { return u.inFlight == 0 })
}

// AwaitDisconnects waits until n clients have gone away in the middle of their call,
// and returns when each was seen to be gone.
func (u *Upstream) AwaitDisconnects(n int) []time.Time {
	u.t.Helper()
	u.await("clients to disconnect", func() bool { return len(u.disconnects) >= n })
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.disconnects)
}

func (u *Upstream) await(what string, reached func() bool) {
	u.t.Helper()
	limit := time.NewTimer(upstreamPatient)
	defer limit.Stop()
	for {
		u.mu.Lock()
		done, changed := reached(), u.changed
		u.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-limit.C:
			u.t.Fatalf("waited %s for the upstream's %s", upstreamPatient, what)
		}
	}
}

// update changes the state and wakes those who await it.
func (u *Upstream) update(change func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change()
	close(u.changed)
	u.changed = make(chan struct{})
}

func (u *Upstream) connState(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		u.update(func() { u.open++; u.opened++ })
	case http.StateClosed, http.StateHijacked:
		u.update(func() { u.open-- })
	}
}

func (u *Upstream) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, upstreamMaxBody))
	if err != nil {
		return // the client went away while it was still sending
	}
	c := &Call{
		Request: Request{
			Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery,
			Header: r.Header.Clone(), Body: body, Arrived: time.Now(),
		},
		w: w, gone: r.Context().Done(), closed: u.closed,
	}
	_ = json.Unmarshal(body, &c.asked) // an odd body leaves the zero value; the script sees the bytes
	var script func(*Call)
	var models []string
	u.update(func() {
		u.requests = append(u.requests, c.Request)
		c.N = len(u.requests)
		u.inFlight++
		u.mostAtOnce = max(u.mostAtOnce, u.inFlight)
		script, models = u.script, u.models
	})
	finished, watched := make(chan struct{}), make(chan struct{})
	go u.watch(c, finished, watched)
	if models != nil && strings.HasSuffix(c.Path, "/models") {
		c.listModels(models)
	} else {
		script(c)
	}
	close(finished)
	<-watched
	u.update(func() { u.inFlight-- })
}

// watch notes when the call's client goes away before the answer has ended.
func (u *Upstream) watch(c *Call, finished <-chan struct{}, watched chan<- struct{}) {
	defer close(watched)
	select {
	case <-c.gone:
	case <-finished:
	case <-u.closed:
	}
	// A script that waits for the same signal may have finished by now, so what
	// counts is whether the client has gone, not which of the two was seen first.
	select {
	case <-c.gone:
		now := time.Now()
		u.update(func() { u.disconnects = append(u.disconnects, now) })
	default:
	}
}
