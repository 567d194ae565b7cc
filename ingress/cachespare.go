package ingress

import (
	"context"
	"net/http"

	"sluice/internal/cache"
	"sluice/internal/inference"
	"sluice/store"
)

// spareLooks bounds the candidates whose answers are looked for when none of them can
// serve.
const spareLooks = 8

// spares reports whether the request may be given an answer whose time is over.
func (c *cacheCall) spares() bool {
	return c != nil && c.rule.StaleIfError > 0 && !c.wish.NoStore && !c.wish.NoCache
}

// eachSpare shows the answers whose time may be over that the request could be given, until
// one is taken. Any candidate's answer is one that the request could have got; in the order
// in which they would be asked, not by age: whom routing prefers counts for more. A stream
// of which the client has a part is not gone on with by another's.
func (s *Ingress) eachSpare(ctx context.Context, c *cacheCall, taken func(*store.CachedAnswer) bool) bool {
	if !c.spares() || c.out != nil && c.out.begun {
		return false
	}
	for _, candidate := range c.candidates[:min(len(c.candidates), spareLooks)] {
		found := s.cache.find(ctx, c.base.Of(candidate), func(a *store.CachedAnswer) bool { return c.judge(a) != cache.Useless })
		if found != nil && taken(found) {
			return true
		}
	}
	return false
}

// giveSpare gives an answer whose time is over, because no candidate can serve the
// request.
func (s *Ingress) giveSpare(w http.ResponseWriter, r *http.Request, c *cacheCall) bool {
	return s.eachSpare(r.Context(), c, func(a *store.CachedAnswer) bool { return s.give(w, r, c, a, cacheStale) })
}

// hasSpare reports whether there is an answer that giveSpare would give.
func (s *Ingress) hasSpare(ctx context.Context, c *cacheCall) bool {
	return s.eachSpare(ctx, c, func(a *store.CachedAnswer) bool {
		g := s.wrap(c, a)
		if g != nil {
			g.memory.release()
		}
		return g != nil
	})
}

// standIn gives a request that failed an answer from before, if its rule allows that and
// the failure is the providers' and not the client's own. It tells those who wait for the
// request, too. An answer that has begun is none to stand in for.
func (s *Ingress) standIn(w http.ResponseWriter, r *http.Request, c *cacheCall, err error) bool {
	if c == nil {
		return false
	}
	e := inference.AsError(err)
	s.cache.leaderFailed(c, e)
	return providersFault(e) && r.Context().Err() == nil && s.giveSpare(w, r, c)
}

// providersFault reports whether a request failed because nobody could serve it.
func providersFault(e *inference.Error) bool {
	switch e.Code {
	case inference.CodeUpstreamRejected, inference.CodeInvalidRequest:
		return false // also where another provider might not refuse it
	case inference.CodeQueueUnavailable, inference.CodeWorkerLost, inference.CodeDeadlineExceeded, inference.CodeLimitsUnavailable:
		return true
	}
	return e.Reason() != 0
}

// openEarly notes that the head of a stream goes out before it is known what comes. Where
// that may be an answer from before, or another request's, the head does not say that there
// is none.
func (c *cacheCall) openEarly(out *sseWriter) {
	if !c.spares() && (c == nil || c.yielded == nil) {
		return
	}
	out.w.Header().Del(cacheHeader)
	out.cached = c
}
