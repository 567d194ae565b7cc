package ingress

import (
	"net/http"
	"time"

	"sluice/internal/cache"
	"sluice/internal/inference"
	"sluice/store"
)

// leader is a request whose answer identical ones wait for. One of its ends is told once.
type leader struct {
	id   leaderID
	done chan struct{} // closed at the end

	// Set before the end.
	answer *store.CachedAnswer // the answer that all of them get
	err    *inference.Error    // the fault that all of them get
	alone  bool                // its answer cannot be shared, nor could another's
}

// leaderID tells apart the leaders that there are. A request that comes after a purge does
// not follow one from before it.
type leaderID struct {
	key        cache.Key
	generation int64 // of purges
}

// leads is what the request leads, or follows.
func (c *cacheCall) leads() leaderID { return leaderID{c.key(), c.generation} }

// join makes a request the leader of those like it, or returns the one there is.
func (a *answerCache) join(id leaderID) (l *leader, leads bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l = a.leaders[id]; l != nil {
		return l, false
	}
	l = &leader{id: id, done: make(chan struct{})}
	a.leaders[id] = l
	return l, true
}

// end ends a leadership, if the request has one.
func (a *answerCache) end(c *cacheCall, how func(*leader)) {
	l := c.lead
	if l == nil {
		return
	}
	c.lead = nil
	how(l)
	a.mu.Lock()
	delete(a.leaders, l.id)
	if y := a.yielded[l.id]; y != nil && l.answer != nil {
		delete(a.yielded, l.id)
		y.answer = l.answer
		close(y.answered)
	}
	a.mu.Unlock()
	close(l.done)
}

// leaderAnswered gives the answer to those who wait for it. They asked whom the leader
// asked, so they get it also if another candidate gave it in the end.
func (a *answerCache) leaderAnswered(c *cacheCall, answer *store.CachedAnswer) {
	a.end(c, func(l *leader) { l.answer = answer })
}

// leaderAlone has those who wait go on by themselves, all at once.
func (a *answerCache) leaderAlone(c *cacheCall) { a.end(c, func(l *leader) { l.alone = true }) }

// leaderFailed gives those who wait the same fault. What is the leader's own, such as its
// client's leaving, its deadline or its limits, leaves them where they were: one of them
// leads.
func (a *answerCache) leaderFailed(c *cacheCall, e *inference.Error) {
	switch e.Code {
	case inference.CodeCancelled, inference.CodeDeadlineExceeded, inference.CodeEventsLost, inference.CodeLimitsUnavailable:
		a.leaderGone(c)
		return
	}
	a.end(c, func(l *leader) { l.err = e })
}

// leaderGone leaves those who wait where they were.
func (a *answerCache) leaderGone(c *cacheCall) { a.end(c, func(*leader) {}) }

// followLeader waits for the answer of an identical request, if there is one under way. It
// reports whether this one is answered; if not it is to be sent off itself.
func (s *Ingress) followLeader(w http.ResponseWriter, r *http.Request, c *cacheCall) (answered bool) {
	a := s.cache
	for {
		l, leads := a.join(c.leads())
		if leads {
			c.lead = l
			return s.lookAgain(w, r, c)
		}
		if !s.await(w, r, c, l) {
			return true
		}
		switch {
		case l.answer != nil && s.give(w, r, c, l.answer, cacheHit):
			a.metrics.coalesced.Inc()
			return true
		case l.answer != nil || l.alone:
			return false
		case l.err != nil:
			if !s.standIn(w, r, c, l.err) {
				s.failAdmitted(w, r, c, l.err)
			}
			return true
		}
	}
}

// lookAgain looks for an answer that the last leader left between this request's look and
// its lead.
func (s *Ingress) lookAgain(w http.ResponseWriter, r *http.Request, c *cacheCall) bool {
	found := s.cache.remembered(c.key())
	if found == nil || c.judge(found) != cache.Fresh || !s.give(w, r, c, found, cacheHit) {
		return false
	}
	s.cache.leaderAnswered(c, found)
	return true
}

// await waits for the leader's end. It reports false when the request is over before that,
// and has been answered: its deadline and its client are its own. A stream is kept open
// with comments.
func (s *Ingress) await(w http.ResponseWriter, r *http.Request, c *cacheCall, l *leader) bool {
	a := s.cache
	defer a.waiting.Add(-1)
	if a.waiting.Add(1) > int64(s.opt.MaxInFlight) {
		s.failAdmitted(w, r, c, errBusy())
		return false
	}
	deadline := time.NewTimer(time.Until(c.job.Deadline))
	defer deadline.Stop()
	idle := (<-chan time.Time)(nil)
	if c.job.Stream {
		tick := time.NewTicker(s.opt.Keepalive)
		defer tick.Stop()
		idle = tick.C
	}
	for {
		select {
		case <-l.done:
			return true
		case <-r.Context().Done():
			s.failAdmitted(w, r, c, errClientGone())
			return false
		case <-deadline.C:
			if err := errDeadline(c.job); !s.standIn(w, r, c, err) {
				s.failAdmitted(w, r, c, err)
			}
			return false
		case <-idle:
			c.open(w)
			if c.out.comment("waiting") != nil {
				idle = nil // the client is gone, and the context is about to say so
			}
		}
	}
}

// open sends the head of a stream before it is known what comes. The rest follows in
// trailers.
func (c *cacheCall) open(w http.ResponseWriter) {
	if c.out != nil {
		return // it is out
	}
	w.Header().Del(cacheHeader)
	c.standing(w.Header())
	c.out = newSSEWriter(w)
	c.out.cached = c
	c.out.begin()
}
