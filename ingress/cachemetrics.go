package ingress

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/internal/inference"
)

// What the cache did about a request, as headers and metrics say it.
const (
	cacheHit    = string(inference.CacheHit)
	cacheMiss   = "miss"
	cacheStale  = string(inference.CacheStale)
	cacheBypass = "bypass"
)

// cacheSize is how much of something is kept.
type cacheSize struct{ answers, bytes int64 }

// cacheMetrics count what the cache does. Labels are few and fixed.
type cacheMetrics struct {
	results   *prometheus.CounterVec
	saved     *prometheus.CounterVec
	failures  *prometheus.CounterVec
	dropped   prometheus.Counter
	coalesced prometheus.Counter

	hits, misses, stale atomic.Int64
	rows                atomic.Pointer[cacheSize] // of the database, as last seen
}

func newCacheMetrics(m *Metrics, a *answerCache) *cacheMetrics {
	c := &cacheMetrics{
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_cache_total", Help: "Requests that the cache is on for by what it did: hit, miss, stale or bypass.",
		}, []string{"result"}),
		saved: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_cache_saved_tokens_total", Help: "Tokens of answers that came from the cache, as the provider reported them at first.",
		}, []string{"type"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_cache_failures_total", Help: "Cached answers that the database did not give or take.",
		}, []string{"operation"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_cache_dropped_total", Help: "Answers that were not kept in the database because too many were on their way there.",
		}),
		coalesced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_cache_coalesced_total", Help: "Requests that got the answer of an identical one under way.",
		}),
	}
	c.rows.Store(new(cacheSize))
	size := func(name, help, level string, of func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: prometheus.Labels{"level": level}}, of)
	}
	const bytes, bytesHelp = "sluice_cache_bytes", "Bytes of cached answers: in this ingress's memory, and in the database as last seen."
	m.reg.MustRegister(c.results, c.saved, c.failures, c.dropped, c.coalesced,
		size(bytes, bytesHelp, "memory", func() float64 { return float64(a.memory.WeightedSize()) }),
		size(bytes, bytesHelp, "database", func() float64 { return float64(c.rows.Load().bytes) }))
	return c
}

// count counts what became of a request.
func (c *cacheMetrics) count(result string) {
	c.results.WithLabelValues(result).Inc()
	switch result {
	case cacheHit:
		c.hits.Add(1)
	case cacheMiss:
		c.misses.Add(1)
	case cacheStale:
		c.stale.Add(1)
	}
}

// spared counts what a provider did not have to do.
func (c *cacheMetrics) spared(u inference.Usage) {
	c.saved.WithLabelValues("prompt").Add(float64(u.PromptTokens))
	c.saved.WithLabelValues("completion").Add(float64(u.CompletionTokens))
}
