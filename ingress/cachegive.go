package ingress

import (
	"net/http"
	"strconv"
	"time"

	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/store"
)

// gift is an answer that is kept, in the shape in which a request asked for it. It holds
// memory until that is released.
type gift struct {
	answer *store.CachedAnswer
	chunks [][]byte // of a stream
	memory share
}

// wrap makes an answer ready to be given, or returns nil if there is no room for it, or no
// way to put it in the shape that was asked for.
func (s *Ingress) wrap(c *cacheCall, a *store.CachedAnswer) *gift {
	g := &gift{answer: a, memory: share{of: &s.cache.giving}}
	if !g.memory.grow(a.Size()) {
		return nil
	}
	if c.job.Stream {
		var shaped bool
		if g.chunks, shaped = openaiapi.Chunks(a.Body, c.job.IncludeUsage); !shaped {
			g.memory.release()
			return nil
		}
	}
	return g
}

// give answers the request with one that is kept. It reports whether the request is
// answered; one that could not be put in the shape that was asked for is not.
func (s *Ingress) give(w http.ResponseWriter, r *http.Request, c *cacheCall, a *store.CachedAnswer, result string) bool {
	g := s.wrap(c, a)
	if g == nil {
		return false
	}
	defer g.memory.release()
	if s.ledger.crowded() {
		s.failAdmitted(w, r, c, errBusy()) // nothing is given that could not be counted
		return true
	}
	s.hand(w, c, g, result)
	return true
}

// hand writes the answer, and its row: it costs no provider anything, and is counted all
// the same. What the head of a stream cannot say any more follows in trailers.
func (s *Ingress) hand(w http.ResponseWriter, c *cacheCall, g *gift, result string) {
	a, now := g.answer, time.Now()
	c.result, c.age = result, max(now.Sub(a.CreatedAt), 0)
	s.accountGiven(w, c, a, now)
	h, prefix := w.Header(), ""
	if c.out != nil && c.out.head {
		prefix = http.TrailerPrefix
		c.out.cached, c.out.late = c, nil // nobody else's headers follow
	} else {
		c.standing(h)
	}
	c.tell(h, prefix)
	h.Set(prefix+"X-Sluice-Provider", a.Provider)
	if h.Get(prefix+"X-Sluice-Attempts") == "" {
		h.Set(prefix+"X-Sluice-Attempts", "0")
		h.Set(prefix+"X-Sluice-Queue-Ms", "0")
	}
	h.Del(prefix + droppedHeader)
	if a.Dropped != "" {
		h.Set(prefix+droppedHeader, a.Dropped)
	}
	if c.job.Stream {
		s.giveStream(w, c, g.chunks)
		return
	}
	limitWrite(w)
	h["Content-Type"] = jsonType
	h["Content-Length"] = []string{strconv.Itoa(len(a.Body))}
	_, _ = w.Write(a.Body) // a client that left now has been answered all the same
}

// tell says in headers what the cache did.
func (c *cacheCall) tell(h http.Header, prefix string) {
	h.Set(prefix+cacheHeader, c.result)
	if c.result == cacheHit || c.result == cacheStale {
		h.Set(prefix+ageHeader, strconv.FormatInt(int64(c.age/time.Second), 10))
	}
}

// late says in trailers what the head could not, because it went out before that was known.
func (c *cacheCall) late(h http.Header) {
	if c != nil {
		c.tell(h, http.TrailerPrefix)
	}
}

// giveRun is the run that the events of an answer from the cache are numbered by: as of a
// job that its first worker answers.
var giveRun = queue.Run{Delivery: 1}

// giveAtOnce is how many chunks one write has.
const giveAtOnce = 16

func (s *Ingress) giveStream(w http.ResponseWriter, c *cacheCall, chunks [][]byte) {
	out := c.out
	if out == nil {
		out = newSSEWriter(w)
	}
	if !out.head {
		out.begin()
	}
	next := uint64(1)
	for len(chunks) > 0 {
		n := min(len(chunks), giveAtOnce)
		if out.chunks(batch{Run: giveRun, First: next, Chunks: chunks[:n]}) != nil {
			return // the client is gone, and has been answered as far as it wanted
		}
		next += uint64(n)
		chunks = chunks[n:]
	}
	_ = out.done(batch{Run: giveRun, First: next}) // as above
}
