package worker

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"sluice/internal/inference"
	"sluice/providers"
)

// BreakerSettings say when calls of a model are given up for a while. The zero value
// never does.
type BreakerSettings struct {
	Failures    int     // in a row; zero does not count them
	FailureRate float64 // of the calls in Window, once there were MinCalls; zero does not count it
	MinCalls    int
	Window      time.Duration
	OpenFor     time.Duration // until calls find out whether the provider is well again
	Probes      int           // such calls at once
}

// openFor is how long a breaker stays open whose settings do not say.
const openFor = 10 * time.Second

// Bounds of the models of a provider that are followed. A call of another one is made
// without a breaker.
const (
	maxModels    = 256
	maxModelName = 256 // bytes
)

// Bounds of what is announced of them, those first that cannot be called.
const (
	statesMost  = 128
	statesBytes = 32 << 10
)

// modelIdle is how long a model is remembered that nobody calls.
const modelIdle = 10 * time.Minute

// breakers are the circuit breakers of one provider, one for each model, with what else
// is known of how the model does.
type breakers struct {
	settings  BreakerSettings
	changed   func(model, state string) // comes while a breaker is locked: it must not ask one
	forgotten func(model string)
	over      atomic.Bool // others have taken their place: they tell of no change any more

	mu      sync.Mutex
	byModel map[string]*breaker
}

// breaker is one model's.
type breaker struct {
	model string
	gate  *gobreaker.TwoStepCircuitBreaker[struct{}]
	pace  pace

	// recent counts the calls by when they ended. The library's own window leaves out
	// those that began before it, and with them every timeout that is longer.
	recent window

	used time.Time // guarded by the breakers' lock

	dropped atomic.Bool // another one is in its place

	mu        sync.Mutex
	state     gobreaker.State
	openUntil time.Time
	asked     time.Time     // until when the provider asked to be left alone
	turned    chan struct{} // closed when the state changes, and replaced
}

func newBreakers(s BreakerSettings, changed func(model, state string), forgotten func(model string)) *breakers {
	if s.OpenFor <= 0 {
		s.OpenFor = openFor
	}
	return &breakers{settings: s, changed: changed, forgotten: forgotten, byModel: make(map[string]*breaker)}
}

// of returns the model's breaker, nil if there are too many.
func (bs *breakers) of(model string, now time.Time) *breaker {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	b, ok := bs.byModel[model]
	if !ok {
		if len(model) > maxModelName || len(bs.byModel) >= maxModels && !bs.evict() {
			return nil
		}
		b = bs.make(model)
		bs.byModel[model] = b
	}
	b.used = now
	return b
}

// evict forgets the model that was not called for the longest time, of those whose
// breaker is not open: clients may ask for any number of names. The caller holds mu.
func (bs *breakers) evict() bool {
	var oldest *breaker
	for _, b := range bs.byModel {
		if b.closed() && (oldest == nil || b.used.Before(oldest.used)) {
			oldest = b
		}
	}
	if oldest == nil {
		return false
	}
	delete(bs.byModel, oldest.model)
	bs.forgotten(oldest.model)
	return true
}

// closed reports whether nothing stands in the way of calls.
func (b *breaker) closed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state == gobreaker.StateClosed
}

func (bs *breakers) make(model string) *breaker {
	s := bs.settings
	b := &breaker{model: model, turned: make(chan struct{}), recent: window{span: s.Window}}
	b.gate = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name: model, MaxRequests: uint32(max(s.Probes, 1)), Timeout: s.OpenFor,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			ok, failed := b.recent.counts(time.Now())
			return s.Failures > 0 && int(c.ConsecutiveFailures) >= s.Failures ||
				s.FailureRate > 0 && ok+failed >= max(s.MinCalls, 1) && float64(failed) >= s.FailureRate*float64(ok+failed)
		},
		IsSuccessful:  func(err error) bool { return !failing(err) },
		IsExcluded:    excluded,
		OnStateChange: func(_ string, _, to gobreaker.State) { b.turn(to, s.OpenFor); bs.tell(b, to) },
	})
	return b
}

// turn notes a change of state and wakes whoever waits for one.
func (b *breaker) turn(to gobreaker.State, forSo time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state, b.openUntil = to, time.Time{}
	b.recent.clear()
	if to == gobreaker.StateOpen {
		b.openUntil = time.Now().Add(forSo)
	}
	close(b.turned)
	b.turned = make(chan struct{})
}

// wake has whoever waits for the breaker look again.
func (b *breaker) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.turned)
	b.turned = make(chan struct{})
}

// waits returns what to wait for before the model may be called: a change of state, or
// a time at the latest, if one is known.
func (b *breaker) waits() (turned <-chan struct{}, until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.turned, b.openUntil
}

// admit reports whether the model may be called now. If so, done takes the call's error;
// if not, the error says why, and the block what to wait for.
func (p *pool) admit(model string) (done func(error), b *block, err error) {
	now := time.Now()
	breaker := p.breakers.of(model, now)
	if until := p.openAt(breaker, now); until.After(now) {
		e := &inference.Error{Code: inference.CodeUpstreamRateLimited, Retryable: true, RetryAfter: until.Sub(now), Message: "The provider asks to be called less often."}
		return nil, &block{until: until, err: e}, e
	}
	if breaker == nil {
		return func(error) {}, nil, nil
	}
	turned, until := breaker.waits() // before the question, so that no change is missed
	report, err := breaker.gate.Allow()
	if err != nil {
		e := &inference.Error{Code: inference.CodeUpstreamUnavailable, Retryable: true, Message: "The provider fails at the moment and is not called.", Err: err}
		if until.After(now) {
			e.RetryAfter = until.Sub(now)
		}
		return nil, &block{until: until, turned: turned, err: e}, e
	}
	return func(err error) {
		if !excluded(err) {
			breaker.recent.add(failing(err), time.Now())
		}
		report(err)
		if excluded(err) {
			breaker.wake() // a probe that said nothing makes room for the next one
		}
	}, nil, nil
}

// askedMost bounds how long a model is left alone because one answer asked for it.
const askedMost = 10 * time.Minute

// ask notes until when the provider asked to be left alone with the model. An answer that
// overtakes another does not make the wait shorter.
func (b *breaker) ask(until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if until.After(b.asked) {
		b.asked = until
	}
}

// openAt is when the provider may be called again that asked to be left alone, with this
// model or with all of its keys; a time that has passed means now.
func (p *pool) openAt(b *breaker, now time.Time) (until time.Time) {
	if b != nil {
		b.mu.Lock()
		until = b.asked
		b.mu.Unlock()
	}
	if g, ok := p.member.Provider.(providers.Gate); ok {
		if at := g.OpenAt(now); at.After(until) {
			return at
		}
	}
	return until
}

// failing reports whether a call's error speaks against the provider: no connection, a
// 5xx, a timeout of the provider's, an answer that breaks off or cannot be understood.
func failing(err error) bool {
	if err == nil {
		return false
	}
	switch inference.AsError(err).Code {
	case inference.CodeUpstreamError, inference.CodeUpstreamUnavailable, inference.CodeUpstreamTimeout,
		inference.CodeUpstreamCut, inference.CodeUpstreamInvalid:
		return true
	}
	return false
}

// excluded reports whether a call's error says nothing of the provider's health: it was
// our side that ended the call, the provider has no room (429) or no account for it, or
// it points out a fault of the client's.
func excluded(err error) bool { return err != nil && !failing(err) }

func stateName(s gobreaker.State) string {
	switch s {
	case gobreaker.StateOpen:
		return inference.BreakerOpen
	case gobreaker.StateHalfOpen:
		return inference.BreakerHalfOpen
	default:
		return inference.BreakerClosed
	}
}

// states tells how the models stand that were called of late, by name, and forgets the
// others. Of too many those are left out that were not called for the longest time.
func (bs *breakers) states(now time.Time) []inference.ModelState {
	all := bs.list(now)
	list := make([]inference.ModelState, 0, min(len(all), statesMost))
	size := 0
	for _, b := range all {
		if len(list) == statesMost || size+len(b.model) > statesBytes {
			break
		}
		size += len(b.model)
		list = append(list, inference.ModelState{Model: b.model, Breaker: stateName(b.gate.State()), FirstToken: b.pace.firstToken()})
	}
	slices.SortFunc(list, func(a, b inference.ModelState) int { return strings.Compare(a.Model, b.Model) })
	return list
}

// list returns the breakers of models called of late, the open ones first, then those
// called last. They must not be asked for their
// state under mu, since a breaker that changes is locked when it says so.
func (bs *breakers) list(now time.Time) []*breaker {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	list := make([]*breaker, 0, len(bs.byModel))
	for model, b := range bs.byModel {
		if now.Sub(b.used) > modelIdle {
			delete(bs.byModel, model)
			bs.forgotten(model)
			continue
		}
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b *breaker) int {
		if x, y := a.closed(), b.closed(); x != y {
			if y {
				return -1
			}
			return 1
		}
		return b.used.Compare(a.used)
	})
	return list
}

// slowdown is how much slower than usual the provider is, over the models called of
// late; zero when that is not known.
func (bs *breakers) slowdown(now time.Time) float64 {
	sum, weight := 0.0, 0.0
	for _, b := range bs.list(now) {
		s, w := b.pace.slowdown(now)
		sum, weight = sum+s*w, weight+w
	}
	if weight == 0 {
		return 0
	}
	return sum / weight
}

// tell says that a breaker has turned, unless it is none of ours any more.
func (bs *breakers) tell(b *breaker, to gobreaker.State) {
	if !b.dropped.Load() && !bs.over.Load() {
		bs.changed(b.model, stateName(to))
	}
}

// drop forgets the model's breaker, or all of them with "", and returns what it forgot. The
// next call finds a new one, which is closed; a call that is open tells the old one how it
// ended, where nobody listens.
func (bs *breakers) drop(model string) (dropped []*breaker) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	for name, b := range bs.byModel {
		if model == "" || name == model {
			b.dropped.Store(true)
			dropped = append(dropped, b)
			delete(bs.byModel, name)
		}
	}
	return dropped
}
