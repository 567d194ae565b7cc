package ingress

import (
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/store"
)

// keepAnswer keeps a plain answer, if it is whole and may be kept.
func (s *Ingress) keepAnswer(f *flight, end *queue.End, body []byte) {
	c := f.cache
	if c == nil {
		return
	}
	whole := func() bool {
		if c.job.Kind == inference.KindEmbeddings {
			return openaiapi.WholeEmbeddings(body, c.parts)
		}
		return openaiapi.WholeCompletion(body, c.parts, c.bounded)
	}
	if !c.keeps() || len(body) > c.most || !whole() {
		s.cache.leaderAlone(c)
		return
	}
	s.keep(f, c, end, body, end.Dropped)
}

// keeps reports whether the answer of the request may be kept, or shared.
func (c *cacheCall) keeps() bool { return !c.wish.NoStore }

// gather takes in what is sent of a streamed answer, and keeps the answer when it is whole.
// What comes here comes in order and without gaps, however slow the client is.
func (s *Ingress) gather(f *flight, b batch) {
	c := f.cache
	if c == nil || !c.keeps() {
		return
	}
	if c.gatherer == nil {
		c.gatherer = openaiapi.NewGatherer(c.most)
	}
	for _, chunk := range b.Chunks {
		c.gatherer.Add(chunk)
	}
	if b.End == nil {
		if c.gatherer.Lost() {
			s.cache.leaderAlone(c)
		}
		return
	}
	body, whole := c.gatherer.Completion(c.parts, c.bounded, b.End.Usage)
	if !whole {
		s.cache.leaderAlone(c)
		return
	}
	f.mu.Lock()
	dropped := f.first.dropped
	f.mu.Unlock()
	s.keep(f, c, b.End, body, dropped)
}

// keep keeps an answer under whoever gave it, and gives it to those who wait for it.
func (s *Ingress) keep(f *flight, c *cacheCall, end *queue.End, body []byte, dropped []string) {
	by, known := f.answeredBy(end, c.candidates)
	if !known {
		s.cache.leaderAlone(c)
		return
	}
	now := time.Now()
	a := &store.CachedAnswer{
		Key: c.base.Of(by), Kind: string(c.job.Kind), Tenant: c.job.Tenant, KeyID: c.job.KeyID, Model: c.model,
		Provider: by.Provider, Served: end.Model, Dropped: strings.Join(dropped, ", "), Body: body, Generation: c.generation,
		CreatedAt: now, FreshUntil: now.Add(c.rule.TTL), StaleUntil: now.Add(c.rule.TTL + c.rule.StaleIfError),
	}
	*a = a.Clean()
	s.cache.keep(a)
	s.cache.leaderAnswered(c, a)
}

// answeredBy returns which candidate gave the answer, if that is certain: a run that was
// fenced may have been of another model of the same provider.
func (f *flight) answeredBy(end *queue.End, candidates []inference.Candidate) (by inference.Candidate, certain bool) {
	f.mu.Lock()
	current, now := f.at(), end.Run == f.run
	f.mu.Unlock()
	if now && (end.Provider == "" || end.Provider == current.Provider) {
		return current, true
	}
	for _, c := range candidates {
		if c.Provider != end.Provider {
			continue
		}
		if certain && c.Model != by.Model {
			return by, false
		}
		by, certain = c, true
	}
	return by, certain
}
