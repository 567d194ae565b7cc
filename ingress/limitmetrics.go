package ingress

import (
	"github.com/prometheus/client_golang/prometheus"

	"sluice/internal/limits"
)

// limitMetrics are what an ingress counts of limits.
type limitMetrics struct {
	limited      *prometheus.CounterVec
	putOff       prometheus.Counter
	waits        prometheus.Counter
	waiting      prometheus.Gauge
	open, closed prometheus.Counter // what became of requests while the counters were out of reach
}

func newLimitMetrics(reg prometheus.Registerer) *limitMetrics {
	unavailable := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_limiter_unavailable_total", Help: "Requests with limits that came while the counters were out of reach, by what became of them: fail_open let them pass, fail_closed refused them or put them off.",
	}, []string{"policy"})
	m := &limitMetrics{
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_limited_total", Help: "Requests that a limit refused, by the limit.",
		}, []string{"limit"}),
		putOff: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_limit_put_off_total", Help: "Times that a background job or a line of a batch was put off because a limit did not let it in.",
		}),
		waits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_limit_waits_total", Help: "Requests that waited for a limit to let them in.",
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_limit_waiting", Help: "Requests that wait for a limit to let them in.",
		}),
		open: unavailable.WithLabelValues("fail_open"), closed: unavailable.WithLabelValues("fail_closed"),
	}
	reg.MustRegister(m.limited, m.putOff, m.waits, m.waiting, unavailable)
	return m
}

// refused counts a refusal. The label is one of few, whoever made the refusal.
func (m *limitMetrics) refused(r *limits.Refusal) {
	name := r.Limit
	if unitOf(name, 0) == "" {
		name = "other"
	}
	m.limited.WithLabelValues(name).Inc()
}
