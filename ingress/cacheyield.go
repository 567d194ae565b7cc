package ingress

import (
	"errors"
	"net/http"

	"sluice/store"
)

// yielding are identical requests that led, each until it had to wait for limits of its
// own. The answer that another of their kind gets is theirs, too.
type yielding struct {
	count    int
	answered chan struct{}       // closed once there is an answer
	answer   *store.CachedAnswer // set before that
}

// yield ends the leadership of a request that is about to wait for its limits, if it has
// one: those who follow it may have others, and one of them leads. What is returned is
// closed when one of them got the answer.
func (a *answerCache) yield(c *cacheCall) <-chan struct{} {
	if c == nil || c.lead == nil {
		return nil
	}
	a.mu.Lock()
	y := a.yielded[c.lead.id]
	if y == nil {
		y = &yielding{answered: make(chan struct{})}
		a.yielded[c.lead.id] = y
	}
	y.count++
	a.mu.Unlock()
	c.yielded = y
	a.leaderGone(c)
	return y.answered
}

// unyield says that the request does not wait for its limits any more. It returns with whom
// it yielded, or nil if it did not.
func (a *answerCache) unyield(c *cacheCall) *yielding {
	if c == nil || c.yielded == nil {
		return nil
	}
	y := c.yielded
	c.yielded = nil
	a.mu.Lock()
	defer a.mu.Unlock()
	if y.count--; y.count == 0 && a.yielded[c.leads()] == y {
		delete(a.yielded, c.leads())
	}
	return y
}

// letIn takes what the request may need from its limits. One that yielded its lead while it
// waited for them gets the answer that another got meanwhile. If there is none yet it gives
// back what it has in hand and follows whoever leads now, or leads again.
func (s *Ingress) letIn(w http.ResponseWriter, r *http.Request, adm *admission) (out *sseWriter, answered bool, err error) {
	c := adm.cache
	for {
		out, err = s.pass(w, r, adm)
		y := s.cache.unyield(c)
		switch {
		case errors.Is(err, errOvertaken):
			if s.give(w, r, c, y.answer, cacheHit) {
				s.cache.metrics.coalesced.Inc()
				return out, true, nil
			}
			continue // by itself, as one that follows would
		case err != nil || y == nil:
			return out, false, err
		}
		if l, leads := s.cache.join(c.leads()); leads {
			c.lead = l
			if answered = s.lookAgain(w, r, c); answered {
				adm.hold.release()
			}
			return out, answered, nil
		}
		adm.hold.release()
		if s.followLeader(w, r, c) {
			return out, true, nil
		}
	}
}
