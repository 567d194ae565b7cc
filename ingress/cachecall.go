package ingress

import (
	"context"
	"net/http"
	"slices"
	"time"

	"sluice/internal/cache"
	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/internal/routing"
	"sluice/store"
)

// cacheCall is a request that the cache is on for. It belongs to the request's handler.
type cacheCall struct {
	rule       cache.Rule
	wish       cache.Wish
	base       cache.Base
	job        *inference.Job
	model      string                // see countedModel
	candidates []inference.Candidate // as they were before anybody was asked
	generation int64                 // of purges, when the request came
	arrived    time.Time

	standing func(http.Header) // tells how the caller stands with its limits

	parts   int  // choices, or texts to embed, of which the answer must have all
	bounded bool // the request bounds the answer's length
	most    int  // bytes of an answer that may be kept

	result   string // as headers and metrics say it
	age      time.Duration
	lead     *leader             // others wait for this request's answer
	yielded  *yielding           // it led until it had to wait for its limits
	gatherer *openaiapi.Gatherer // of a streamed answer that may be kept
	out      *sseWriter          // of a stream whose head may be out by now; nil: nothing has been written
}

// Headers of an answer that the cache is on for.
const (
	cacheHeader = "X-Sluice-Cache"
	ageHeader   = "Age" // RFC 9111, 5.1
)

// cacheCall returns how the request is to be cached, or nil if it is not at all. The key
// may ask for the model by now, and the candidates are who would be asked. To name the
// provider changes nothing but who that is: the model is the one that limits count.
func (s *Ingress) cacheCall(settings *Settings, r *http.Request, q routing.Request, job *inference.Job, bounded bool) *cacheCall {
	wish := cache.WishOf(r.Header)
	table := s.table(settings)
	resolved, _ := table.Resolve(q.Model)
	q.Counted = countedModel(table, q.Model, job.Candidates)
	rule, on := settings.Cache.Decide(&q, resolved, wish)
	if !on {
		return nil
	}
	c := &cacheCall{
		rule: rule, wish: wish, job: job, model: q.Counted, candidates: job.Candidates, bounded: bounded, most: settings.Cache.MaxAnswer,
		generation: s.cache.purges.generation(), arrived: time.Now(), result: cacheMiss,
	}
	question := cache.Question{Tenant: q.Tenant, Kind: q.Kind, Model: q.Counted, Body: job.Body}
	if rule.PerKey {
		question.KeyID = q.KeyID
	}
	var err error
	if c.base, err = question.Base(); err != nil {
		return nil // it is like no other request
	}
	if q.Kind == inference.KindEmbeddings {
		asked, err := openaiapi.ParseEmbeddings(job.Body)
		if err != nil {
			return nil
		}
		c.parts = asked.Inputs
	} else {
		c.parts = openaiapi.ChoicesOf(job.Body)
	}
	return c
}

// fromCache answers the request if the cache may and can, or if nobody else is to be asked.
// It comes before anything is reserved for the request, or published.
func (s *Ingress) fromCache(w http.ResponseWriter, r *http.Request, adm *admission) (answered bool) {
	c := adm.cache
	defer func() {
		if answered {
			adm.memory.release()
		}
	}()
	if c == nil {
		if !cache.WishOf(r.Header).OnlyIfCached {
			return false
		}
		s.tellLimits(w.Header(), adm)
		s.fail(w, r, errNotCached(), nil)
		return true
	}
	c.standing = func(h http.Header) { s.tellLimits(h, adm) }
	bypass := c.wish.NoStore || c.wish.NoCache
	if bypass {
		c.result = cacheBypass
	}
	w.Header().Set(cacheHeader, c.result)
	if !bypass && s.look(w, r, c) {
		return true
	}
	switch {
	case c.wish.OnlyIfCached:
		s.failAdmitted(w, r, c, errNotCached())
		return true
	case bypass:
		return false
	case !s.anyAble(c.candidates) && s.giveSpare(w, r, c):
		return true
	case c.rule.Coalesce && adm.refused == nil:
		return s.followLeader(w, r, c)
	}
	return false
}

// errNotCached refuses a request that no provider is to be asked for (RFC 9111, 5.2.1.7),
// also where the cache is off for it.
func errNotCached() error {
	return inference.Errorf(inference.CodeNotCached, "The answer is not in the cache, and the request says only-if-cached.")
}

// key is what the answer of whoever is asked first is found by.
func (c *cacheCall) key() cache.Key { return c.base.Of(c.candidates[0]) }

// judge says how an answer stands to the request.
func (c *cacheCall) judge(a *store.CachedAnswer) cache.State {
	return c.rule.Judge(c.wish, a.CreatedAt, a.FreshUntil, a.StaleUntil, time.Now())
}

// look gives the request an answer that is kept, if there is one of which it approves.
func (s *Ingress) look(w http.ResponseWriter, r *http.Request, c *cacheCall) bool {
	found := s.cache.find(r.Context(), c.key(), func(a *store.CachedAnswer) bool { return c.judge(a) == cache.Fresh })
	if found != nil {
		return s.give(w, r, c, found, cacheHit)
	}
	if c.wish.MaxStale == 0 {
		return false
	}
	found = s.cache.find(r.Context(), c.key(), func(a *store.CachedAnswer) bool { return c.judge(a) == cache.Stale })
	return found != nil && s.give(w, r, c, found, cacheStale)
}

func (s *Ingress) anyAble(candidates []inference.Candidate) bool {
	return slices.ContainsFunc(candidates, s.workers.able)
}

// failAdmitted answers with an error, as an event where the stream has its head already.
func (s *Ingress) failAdmitted(w http.ResponseWriter, r *http.Request, c *cacheCall, err error) {
	if c.out == nil {
		c.standing(w.Header())
		s.fail(w, r, err, nil)
		return
	}
	e := inference.AsError(err)
	s.logFailure(r.Context(), w.Header().Get(requestIDHeader), e, nil)
	s.metrics.failed(statusOf(e), e.Code)
	_ = c.out.fail(e, nil, batch{}) // a client that is gone needs no word
}

// accountGiven writes the row of an answer from the cache. One that stands in for a job's
// has a row beside the job's own, which says what became of that.
func (s *Ingress) accountGiven(w http.ResponseWriter, c *cacheCall, a *store.CachedAnswer, now time.Time) {
	j := c.job
	rec := inference.Record{
		JobID: j.ID, RequestID: j.RequestID, Kind: j.Kind, Tenant: j.Tenant, KeyID: j.KeyID, ModelAsked: j.Model,
		Provider: a.Provider, ModelServed: a.Served, Stream: j.Stream, Usage: inference.Usage{Known: true},
		Outcome: inference.OutcomeSucceeded, Status: http.StatusOK, CreatedAt: j.CreatedAt, Total: now.Sub(c.arrived), Cache: inference.CacheUse(c.result),
	}
	if c.result == cacheStale {
		rec.JobID = queue.NewJobID(s.opt.ID, now)
	}
	if j.Stream {
		rec.FirstToken = rec.Total
	}
	s.ledger.add(entry{record: rec})
	spared, _ := openaiapi.UsageOf(a.Body)
	s.cache.metrics.spared(spared)
	s.log.DebugContext(context.Background(), "request answered from the cache", "request_id", w.Header().Get(requestIDHeader), "job_id", rec.JobID, "provider", a.Provider)
}

// cacheDone ends the cache's part in a request, however it was answered.
func (s *Ingress) cacheDone(c *cacheCall) {
	if c == nil {
		return
	}
	s.cache.leaderGone(c)
	s.cache.metrics.count(c.result)
}
