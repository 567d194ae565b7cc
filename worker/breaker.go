package worker

import (
	"slices"
	"strings"
	"sync"
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

// windowParts is how many parts a window moves on by.
const windowParts = 10

// maxModels bounds how many models of a provider are followed. A call of one more is
// made without a breaker.
const maxModels = 256

// modelIdle is how long a model is remembered that nobody calls.
const modelIdle = 10 * time.Minute

// breakers are the circuit breakers of one provider, one for each model, with what else
// is known of how the model does.
type breakers struct {
	settings  BreakerSettings
	changed   func(model, state string) // comes while a breaker is locked: it must not ask one
	forgotten func(model string)

	mu      sync.Mutex
	byModel map[string]*breaker
}

// breaker is one model's.
type breaker struct {
	model string
	gate  *gobreaker.TwoStepCircuitBreaker[struct{}]
	pace  pace

	mu        sync.Mutex
	used      time.Time
	openUntil time.Time
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
		if len(bs.byModel) >= maxModels {
			return nil
		}
		b = bs.make(model)
		bs.byModel[model] = b
	}
	b.mu.Lock()
	b.used = now
	b.mu.Unlock()
	return b
}

func (bs *breakers) make(model string) *breaker {
	s := bs.settings
	b := &breaker{model: model, turned: make(chan struct{})}
	b.gate = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name: model, MaxRequests: uint32(max(s.Probes, 1)), Interval: s.Window, BucketPeriod: s.Window / windowParts, Timeout: s.OpenFor,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			calls := c.TotalSuccesses + c.TotalFailures
			return s.Failures > 0 && int(c.ConsecutiveFailures) >= s.Failures ||
				s.FailureRate > 0 && int(calls) >= max(s.MinCalls, 1) && float64(c.TotalFailures) >= s.FailureRate*float64(calls)
		},
		IsSuccessful:  func(err error) bool { return !failing(err) },
		IsExcluded:    excluded,
		OnStateChange: func(_ string, _, to gobreaker.State) { b.turn(to, s.OpenFor); bs.changed(model, stateName(to)) },
	})
	return b
}

// turn notes a change of state and wakes whoever waits for one.
func (b *breaker) turn(to gobreaker.State, forSo time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.openUntil = time.Time{}
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
	if until := p.openAt(now); until.After(now) {
		e := &inference.Error{Code: inference.CodeUpstreamRateLimited, Retryable: true, RetryAfter: until.Sub(now), Message: "The provider asks to be called less often."}
		return nil, &block{until: until}, e
	}
	breaker := p.breakers.of(model, now)
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
		return nil, &block{until: until, turned: turned}, e
	}
	return func(err error) {
		report(err)
		if excluded(err) {
			breaker.wake() // a probe that said nothing makes room for the next one
		}
	}, nil, nil
}

// openAt is when the provider may be called again that asked to be left alone, be it by
// its keys or as a whole; a time that has passed means now.
func (p *pool) openAt(now time.Time) time.Time {
	until := time.Unix(0, p.asked.Load())
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
// our side that ended the call, or the provider has no room (429) or no account for it.
// A fault of the client's that the provider points out shows that it is well.
func excluded(err error) bool {
	if err == nil || failing(err) {
		return false
	}
	return inference.AsError(err).Code != inference.CodeUpstreamRejected
}

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
// others.
func (bs *breakers) states(now time.Time) []inference.ModelState {
	all := bs.list(now)
	list := make([]inference.ModelState, 0, len(all))
	for _, b := range all {
		list = append(list, inference.ModelState{Model: b.model, Breaker: stateName(b.gate.State()), FirstToken: b.pace.firstToken()})
	}
	slices.SortFunc(list, func(a, b inference.ModelState) int { return strings.Compare(a.Model, b.Model) })
	return list
}

// list returns the breakers of models called of late. They must not be asked for their
// state under mu, since a breaker that changes is locked when it says so.
func (bs *breakers) list(now time.Time) []*breaker {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	list := make([]*breaker, 0, len(bs.byModel))
	for model, b := range bs.byModel {
		b.mu.Lock()
		idle := now.Sub(b.used) > modelIdle
		b.mu.Unlock()
		if idle {
			delete(bs.byModel, model)
			bs.forgotten(model)
			continue
		}
		list = append(list, b)
	}
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
