package worker

import (
	"github.com/prometheus/client_golang/prometheus"

	"sluice/internal/queue"
	"sluice/providers"
)

// Metrics are what a worker counts. Labels are provider names and error codes, both
// of them few.
type Metrics struct {
	upstream     *prometheus.HistogramVec
	retries      *prometheus.CounterVec
	redeliveries *prometheus.CounterVec
	ends         *prometheus.CounterVec
	inFlight     *prometheus.GaugeVec
	keys         *prometheus.GaugeVec
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
	}
	reg.MustRegister(m.upstream, m.retries, m.redeliveries, m.ends, m.inFlight, m.keys)
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
}

func (m *Metrics) provider(name string) *providerMetrics {
	return &providerMetrics{
		name: name, upstream: m.upstream.WithLabelValues(name), retries: m.retries.WithLabelValues(name),
		redeliveries: m.redeliveries.WithLabelValues(name), inFlight: m.inFlight.WithLabelValues(name),
		succeeded: m.ends.WithLabelValues(name, ""), ends: m.ends, keys: m.keys,
	}
}

// upstreamKeys shows how the upstream's keys stand, if its adapter knows.
func (m *providerMetrics) upstreamKeys(p providers.Provider) {
	reporter, ok := p.(providers.KeyReporter)
	if !ok {
		return
	}
	counts := map[string]int{providers.KeyOK: 0, providers.KeyCooling: 0, providers.KeyRefused: 0}
	for _, k := range reporter.Keys() {
		counts[k.State]++
	}
	for state, n := range counts {
		m.keys.WithLabelValues(m.name, state).Set(float64(n))
	}
}

func (m *providerMetrics) calls(end *queue.End) {
	if end.Err == nil {
		m.succeeded.Inc()
		return
	}
	m.ends.WithLabelValues(m.name, string(end.Err.Code)).Inc()
}
