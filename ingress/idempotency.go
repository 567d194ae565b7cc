package ingress

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// IdempotencyOptions are what requests with an idempotency key are remembered by.
// Without Keys such requests are refused.
type IdempotencyOptions struct {
	Keys store.Idempotency
	Keep time.Duration // how long a key is remembered
}

// Rhythm and bounds of idempotency keys.
const (
	idemLease     = 15 * time.Second
	idemRenew     = 5 * time.Second
	idemRenewSoon = time.Second // after a failure
	idemWait      = 5 * time.Second
	idemPollFirst = 200 * time.Millisecond // of a key that another ingress works on
	idemPollMost  = time.Second

	idemStoreFor   = time.Minute // of trying to store an answer that the client has
	idemPurgeEvery = time.Minute

	// overtime is what a call that no client holds any more has beyond every deadline. It
	// has one of its own long before.
	overtime = 30 * time.Second
)

// idempotency sees to it that requests with one key are done once. The database says
// whose turn it is: a key belongs to one call at a time, which prolongs its lease until it
// has an answer; others with the key wait for that.
type idempotency struct {
	opt      IdempotencyOptions
	most     int // callers with a key at once
	log      *slog.Logger
	tapes    budget // of the answers that are being recorded, or replayed
	callers  atomic.Int64
	outcomes *prometheus.CounterVec

	stopping chan struct{}
	calls    sync.WaitGroup // under way, and until their answers are stored

	mu      sync.Mutex
	stopped bool
	running map[heldKey]*keyedCall
}

// heldKey names a key.
type heldKey struct{ tenant, key string }

func newIdempotency(o IdempotencyOptions, most int, memory int64, m *Metrics, log *slog.Logger) *idempotency {
	i := &idempotency{
		opt: o, most: most, log: log, tapes: budget{most: memory}, stopping: make(chan struct{}), running: make(map[heldKey]*keyedCall),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_idempotent_requests_total", Help: "Requests with an idempotency key by what became of them: new, replayed, attached or refused.",
		}, []string{"outcome"}),
	}
	if o.Keys != nil {
		m.reg.MustRegister(i.outcomes)
	}
	return i
}

// keyedRequest is a request on its way to being done once.
type keyedRequest struct {
	caller  store.Key
	name    string // its idempotency key
	hash    [32]byte
	timeout time.Duration
	creates bool                                                            // what it creates is kept, under an id that follows from its job's
	follow  func(w http.ResponseWriter, r *http.Request, jobID string) bool // sends what comes of a job under way; nil if that is not how it answers
}

// once answers a request through do if its key is new, and otherwise as the request was
// answered that had it before. One that is under way is waited for.
func (s *Ingress) once(w http.ResponseWriter, r *http.Request, q keyedRequest, do http.HandlerFunc) {
	i := s.idempotency
	ctx, cancel := context.WithTimeout(r.Context(), q.timeout)
	defer cancel()
	request := store.IdempotentRequest{
		Tenant: q.caller.Tenant, KeyID: q.caller.ID, Key: q.name, Hash: q.hash, Owner: rand.Text(), JobID: queue.NewJobID(s.opt.ID, time.Now()), Inherits: q.creates,
	}
	defer i.callers.Add(-1)
	if i.callers.Add(1) > int64(i.most) {
		s.fail(w, r, errBusy(), nil)
		return
	}
	for wait := idemPollFirst; ; wait = min(2*wait, idemPollMost) {
		state, err := i.begin(ctx, request)
		if err == nil && ctx.Err() != nil && state.Outcome == store.IdempotentInFlight {
			err = errNotInTime(r, q.timeout)
		}
		switch {
		case err != nil:
			i.outcomes.WithLabelValues("refused").Inc()
			s.fail(w, r, err, nil)
			return
		case state.Outcome == store.IdempotentNew:
			i.outcomes.WithLabelValues("new").Inc()
			s.perform(w, r, &keyedCall{request: request.Heir(state), again: state.JobID != ""}, do)
			return
		case state.Outcome == store.IdempotentDone:
			s.replay(w, r, &state.Answer, "replayed")
			return
		case q.follow != nil && q.follow(w, r, state.JobID):
			i.outcomes.WithLabelValues("attached").Inc()
			return
		}
		if answer := i.await(ctx, request, wait); answer != nil {
			s.replay(w, r, answer, "attached")
			return
		}
	}
}

// begin asks whose turn it is. It is not cut short by a client that goes: the key could be
// taken by then, with nobody at it.
func (i *idempotency) begin(ctx context.Context, request store.IdempotentRequest) (store.IdempotentState, error) {
	if i.opt.Keys == nil {
		return store.IdempotentState{}, errNoIdempotency(nil)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), idemWait)
	defer cancel()
	state, err := i.opt.Keys.BeginIdempotent(ctx, request, time.Now(), idemLease, i.opt.Keep)
	switch {
	case errors.Is(err, store.ErrConflict):
		return state, &inference.Error{
			Code: inference.CodeIdempotencyReused, Param: idempotencyHeader,
			Message: "This " + idempotencyHeader + " was used for another request. A new request needs a new key.",
		}
	case err != nil:
		return state, errNoIdempotency(err)
	}
	return state, nil
}

// errNoIdempotency refuses a request that nothing would keep from being done twice.
func errNoIdempotency(err error) error {
	return &inference.Error{
		Code: inference.CodeNoIdempotency, Param: idempotencyHeader, Retryable: true, Err: err,
		Message: "The idempotency key cannot be looked up at the moment, and without that the request could be done twice.",
	}
}

func errNotInTime(r *http.Request, timeout time.Duration) error {
	if r.Context().Err() != nil {
		return errClientGone()
	}
	return &inference.Error{
		Code: inference.CodeDeadlineExceeded, Retryable: true,
		Message: "The request with this " + idempotencyHeader + " that is under way was not answered within " + timeout.String() + ". It goes on.",
	}
}

// await waits for the call that is under way, and returns its answer. One of another
// ingress is waited for a while, for the database to be asked again; then, and when the
// answer could not be recorded, there is none.
func (i *idempotency) await(ctx context.Context, request store.IdempotentRequest, wait time.Duration) *store.IdempotentAnswer {
	i.mu.Lock()
	call := i.running[heldKey{request.Tenant, request.Key}]
	i.mu.Unlock()
	if call != nil && call.request.Hash == request.Hash {
		select {
		case <-ctx.Done():
			return nil
		case <-call.done:
			return call.answer
		}
	}
	pause(ctx, wait)
	return nil
}

// Headers of a request with a key, and of an answer that was given before.
const (
	idempotencyHeader = "Idempotency-Key"
	replayedHeader    = "Idempotency-Replayed"
)

// replay gives an answer once more.
func (s *Ingress) replay(w http.ResponseWriter, r *http.Request, a *store.IdempotentAnswer, outcome string) {
	memory := share{of: &s.idempotency.tapes}
	if !memory.grow(int64(len(a.Body))) {
		s.fail(w, r, errBusy(), nil)
		return
	}
	defer memory.release()
	s.idempotency.outcomes.WithLabelValues(outcome).Inc()
	h := w.Header()
	for name, value := range a.Header {
		h.Set(name, value)
	}
	h.Set(replayedHeader, "true")
	h.Set("Content-Length", strconv.Itoa(len(a.Body)))
	limitWrite(w)
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body) // the client may be gone; nothing else is to be done
}

// purge removes keys that are no longer kept until ctx ends. Every ingress does so.
func (i *idempotency) purge(ctx context.Context) {
	if i.opt.Keys == nil {
		return
	}
	tick := time.NewTicker(idemPurgeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var err error
		for n := store.MaxPage; n == store.MaxPage && err == nil; {
			n, err = i.opt.Keys.PurgeIdempotent(ctx, time.Now(), store.MaxPage)
		}
		if err != nil && ctx.Err() == nil {
			i.log.Warn("old idempotency keys not removed; it will be tried again", "error", err)
		}
	}
}
