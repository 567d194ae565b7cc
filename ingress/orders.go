package ingress

import (
	"fmt"
	"maps"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// ordered takes what operators want of providers.
func (d *directory) ordered(all queue.Controls) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.orders = all
	d.draw()
}

// orderedOne takes what an operator has just said here; what all said follows.
func (d *directory) orderedOne(provider string, word queue.Control) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := maps.Clone(d.orders)
	if next == nil {
		next = make(queue.Controls)
	}
	next[provider] = word
	d.orders = next
	d.draw()
}

// obeyed notes at the providers what operators want of them. The caller holds mu.
func (d *directory) obeyed(providers map[string]providerState, now time.Time) {
	for name, word := range d.orders {
		if p, ok := providers[name]; ok {
			state := word.At(now)
			p.Order, p.Paused, p.Drained = word, state == queue.ProviderPaused, state == queue.ProviderDraining
			providers[name] = p
		}
	}
}

// outdated reports whether the time of an order that the picture shows is over. The caller
// holds mu.
func (d *directory) outdated(now time.Time) bool {
	for _, p := range d.latest().providers {
		if p.state() != p.Order.At(now) {
			return true
		}
	}
	return false
}

// state is what operators want of the provider.
func (p *providerState) state() queue.ProviderState {
	switch {
	case p.Paused:
		return queue.ProviderPaused
	case p.Drained:
		return queue.ProviderDraining
	}
	return queue.ProviderActive
}

// inForce is the operators' word on the provider as it holds now, which nobody need have
// said: a provider is active at first, and again when the time of an order is over.
func (p *providerState) inForce(now time.Time) queue.Control {
	if state := p.Order.At(now); state != p.Order.State {
		return queue.Control{State: state, Since: p.Order.Until}
	}
	return p.Order
}

// Bounds of what a client is told to wait for a provider that an operator has stopped.
const (
	resumeUnknown = time.Minute // nobody said for how long
	resumeMost    = time.Hour   // an operator may resume it earlier
)

// activeIn is when to ask again for a provider that an operator has paused or drains.
func (p *providerState) activeIn(now time.Time) time.Duration {
	if p.Order.Until.IsZero() {
		return resumeUnknown
	}
	return min(max(p.Order.Until.Sub(now), retryLeast), resumeMost)
}

// detour returns the candidates of a job that was accepted before and gets its message now,
// without the first one if an operator drains that and another can take it. The queue of
// one that is drained goes on to take what nobody else can.
func (d *directory) detour(candidates []inference.Candidate) []inference.Candidate {
	if len(candidates) > 1 && d.latest().providers[candidates[0].Provider].Drained {
		if rest := inference.NextCandidates(candidates, inference.ReasonUnavailable, d.alive); len(rest) > 0 {
			return rest
		}
	}
	return candidates
}

func errDrained(model string, after time.Duration) *inference.Error {
	return &inference.Error{
		Code: inference.CodeProviderDraining, Param: "model", Retryable: true, RetryAfter: after,
		Message: fmt.Sprintf("The provider of the model %q takes no new requests at the moment. Try again later.", model),
	}
}
