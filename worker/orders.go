package worker

import (
	"sync"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// orders are what operators want of providers, as the worker last heard. It begins
// nothing before its first word, so that one that starts during a pause obeys it; after
// that, the last word stays in force for as long as there is no newer one.
type orders struct {
	heard chan struct{} // closed at the first word

	mu  sync.Mutex
	all queue.Controls
}

// of returns what is wanted of the provider.
func (o *orders) of(provider string, now time.Time) queue.ProviderState {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all[provider].At(now)
}

// ordered takes what operators want.
func (w *Worker) ordered(all queue.Controls) {
	w.orders.mu.Lock()
	first := w.orders.all == nil
	w.orders.all = all
	w.orders.mu.Unlock()
	w.obey(time.Now())
	if first {
		close(w.orders.heard)
	}
}

// obey brings the pools to the state that is wanted of them now: a pause may also be over
// because its time is.
func (w *Worker) obey(now time.Time) {
	for _, p := range w.all() {
		if p.obey(w.orders.of(p.member.Name, now)) {
			w.news.Store(true)
			w.log.Info("provider has another state", "provider", p.member.Name, "state", string(w.orders.of(p.member.Name, now)))
		}
	}
}

// obey reports whether the state is another one than before. In a pause no more jobs are
// taken, and none that waits here is begun: it goes back to the queue, which holds it.
// Calls that are open go on to their end, with their retries.
func (p *pool) obey(state queue.ProviderState) (news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.stateLocked()
	if p.stopped || was == state {
		return false
	}
	p.state = state
	if state == queue.ProviderPaused {
		p.haltLocked()
	} else if was == queue.ProviderPaused {
		p.halted = make(chan struct{})
	}
	for _, l := range p.lanes {
		switch {
		case l.puller == nil:
		case state == queue.ProviderPaused:
			l.puller.Pause()
		case was == queue.ProviderPaused:
			if err := l.puller.Resume(); err != nil {
				p.worker.log.Warn("jobs are not taken again", "provider", p.member.Name, "lane", string(l.name), "error", err)
			}
		}
	}
	return true
}

func (p *pool) stateLocked() queue.ProviderState {
	if p.state == "" {
		return queue.ProviderActive
	}
	return p.state
}

// haltLocked is called under mu.
func (p *pool) haltLocked() {
	select {
	case <-p.halted:
	default:
		close(p.halted)
	}
}

// halt returns what is closed as soon as jobs that wait here are to go back.
func (p *pool) halt() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.halted
}

func (p *pool) paused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state == queue.ProviderPaused
}

// resets hear when breakers of a provider are to be closed. They are Run's, and changed
// under turnover once it has begun.
type resets map[string]*queue.Ear

// close stops hearing it for a provider that is not served any more: whoever asks waits for
// as many answers as there are workers that serve it.
func (r resets) close(provider string) {
	if ear := r[provider]; ear != nil {
		ear.Close()
		delete(r, provider)
	}
}

// hearResets hears it for the provider, whatever pool it has by then.
func (w *Worker) hearResets(provider string) error {
	if w.resets[provider] != nil {
		return nil
	}
	ear, err := w.conn.HearResets(provider, func(model string) (closed int) {
		if p := named(w.served(), provider); p != nil {
			closed = p.resetBreakers(model)
		}
		return closed
	})
	if err != nil {
		return err
	}
	w.resets[provider] = ear
	return nil
}

func (w *Worker) closeResets() {
	for _, ear := range w.resets {
		ear.Close()
	}
}

// resetBreakers closes the model's breaker, or those of all models with "", and returns how
// many were not closed. What the provider asked for, to be left alone for a while, is
// forgotten as well.
func (p *pool) resetBreakers(model string) (closed int) {
	for _, b := range p.breakers.drop(model) {
		if !b.closed() {
			closed++
		}
		p.breakerTurned(b.model, inference.BreakerClosed)
		b.wake()
	}
	return closed
}
