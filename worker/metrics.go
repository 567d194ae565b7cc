package worker

import (
	"github.com/prometheus/client_golang/prometheus"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/providers"
)

// Metrics are what a worker counts. Labels are provider names, error codes and reasons,
// all of them few, and of breakers that have turned the models, which have a bound.
type Metrics struct {
	upstream     *prometheus.HistogramVec
	retries      *prometheus.CounterVec
	redeliveries *prometheus.CounterVec
	ends         *prometheus.CounterVec
	inFlight     *prometheus.GaugeVec
	keys         *prometheus.GaugeVec
	breakers     *prometheus.GaugeVec
	limit        *prometheus.GaugeVec
	held         *prometheus.GaugeVec
	failovers    *prometheus.CounterVec
	stored       *prometheus.GaugeVec
}

// NewMetrics registers the worker's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		upstream: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_upstream_duration_seconds", Help: "Time of one call of a provider, to its end.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 19),
		}, []string{"provider"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_retries_total", Help: "Calls made again after a failure that may pass.",
		}, []string{"provider"}),
		redeliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_redeliveries_total", Help: "Jobs handed out again because a worker was silent about them or gave them back.",
		}, []string{"provider"}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_worker_jobs_total", Help: "Runs of jobs by how they ended; code is empty for success.",
		}, []string{"provider", "code"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_worker_in_flight", Help: "Calls that this worker has open at its provider.",
		}, []string{"provider"}),
		keys: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_upstream_keys", Help: "API keys of the upstream by how they stand: ok, cooling (told to wait) or refused.",
		}, []string{"provider", "state"}),
		breakers: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_breaker_state", Help: "Circuit breakers of this worker: 1 for the state that a model's is in (closed, half_open, open), 0 for the others.",
		}, []string{"provider", "model", "state"}),
		limit: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_provider_limit", Help: "Calls at once, across all workers, that the provider is taken to bear at the moment.",
		}, []string{"provider"}),
		held: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_worker_held", Help: "Jobs that wait in this worker until their provider can be called.",
		}, []string{"provider"}),
		failovers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_failovers_total", Help: "Jobs passed on to their next candidate, by why this provider did not serve them.",
		}, []string{"provider", "reason"}),
		stored: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_worker_stored_jobs", Help: "Background jobs and lines of batches in this worker's hands: waiting for a slot, running, held until their provider can be called, or settling (their result is not yet kept).",
		}, []string{"provider", "lane", "state"}),
	}
	reg.MustRegister(m.upstream, m.retries, m.redeliveries, m.ends, m.inFlight, m.keys, m.breakers, m.limit, m.held, m.failovers, m.stored)
	return m
}

// providerMetrics are one provider's, looked up once.
type providerMetrics struct {
	name         string
	upstream     prometheus.Observer
	retries      prometheus.Counter
	redeliveries prometheus.Counter
	inFlight     prometheus.Gauge
	succeeded    prometheus.Counter
	ends         *prometheus.CounterVec
	keys         *prometheus.GaugeVec
	breakers     *prometheus.GaugeVec
	limit, held  prometheus.Gauge
	failovers    *prometheus.CounterVec
	stored       *prometheus.GaugeVec
	gauges       *Metrics
}

func (m *Metrics) provider(name string) *providerMetrics {
	return &providerMetrics{
		name: name, upstream: m.upstream.WithLabelValues(name), retries: m.retries.WithLabelValues(name),
		redeliveries: m.redeliveries.WithLabelValues(name), inFlight: m.inFlight.WithLabelValues(name),
		succeeded: m.ends.WithLabelValues(name, ""), ends: m.ends, keys: m.keys,
		breakers: m.breakers, limit: m.limit.WithLabelValues(name), held: m.held.WithLabelValues(name), failovers: m.failovers, stored: m.stored, gauges: m,
	}
}

// breaker shows the state of a model's breaker. Models that were never called have none,
// and there is a bound on how many are followed.
func (m *providerMetrics) breaker(model, state string) {
	for _, s := range []string{inference.BreakerClosed, inference.BreakerHalfOpen, inference.BreakerOpen} {
		value := 0.0
		if s == state {
			value = 1
		}
		m.breakers.WithLabelValues(m.name, model, s).Set(value)
	}
}

// forget takes the breaker of a model away that nobody calls any more.
func (m *providerMetrics) forget(model string) {
	m.breakers.DeletePartialMatch(prometheus.Labels{"provider": m.name, "model": model})
}

// breakersAnew takes the breakers of all models away: others take their place.
func (m *providerMetrics) breakersAnew() {
	m.breakers.DeletePartialMatch(prometheus.Labels{"provider": m.name})
}

// gone takes away what is shown of a provider that is not served any more. What was
// counted stays.
func (m *providerMetrics) gone() {
	for _, g := range []*prometheus.GaugeVec{m.gauges.inFlight, m.gauges.limit, m.gauges.held, m.keys, m.breakers, m.stored} {
		g.DeletePartialMatch(prometheus.Labels{"provider": m.name})
	}
}

func (m *providerMetrics) failedOver(reason inference.Reasons) {
	for _, name := range reason.Names() {
		m.failovers.WithLabelValues(m.name, name).Inc()
	}
}

// lane shows a stored lane's jobs.
func (m *providerMetrics) lane(l *lane) {
	running, waiting := l.pool.gate.count(l.nth)
	for state, n := range map[string]int{"waiting": waiting, "running": running, "held": int(l.held.Load()), "settling": int(l.settling.Load())} {
		m.stored.WithLabelValues(m.name, string(l.name), state).Set(float64(n))
	}
}

// upstreamKeys shows how the upstream's keys stand, if its adapter knows.
// refused says that none of them is accepted.
func (m *providerMetrics) upstreamKeys(p providers.Provider) (refused bool) {
	reporter, ok := p.(providers.KeyReporter)
	if !ok {
		return false
	}
	counts := map[string]int{providers.KeyOK: 0, providers.KeyCooling: 0, providers.KeyRefused: 0}
	for _, k := range reporter.Keys() {
		counts[k.State]++
	}
	for state, n := range counts {
		m.keys.WithLabelValues(m.name, state).Set(float64(n))
	}
	return counts[providers.KeyRefused] > 0 && counts[providers.KeyOK]+counts[providers.KeyCooling] == 0
}

func (m *providerMetrics) calls(end *queue.End) {
	if end.Err == nil {
		m.succeeded.Inc()
		return
	}
	m.ends.WithLabelValues(m.name, string(end.Err.Code)).Inc()
}
