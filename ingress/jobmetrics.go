package ingress

import "github.com/prometheus/client_golang/prometheus"

// jobMetrics are what an ingress counts of jobs that are answered later, and of batches'
// lines.
type jobMetrics struct {
	accepted prometheus.Counter
	finished *prometheus.CounterVec
	results  *prometheus.CounterVec
	lost     prometheus.Counter
	backlog  prometheus.Gauge
}

func newJobMetrics(reg prometheus.Registerer) *jobMetrics {
	m := &jobMetrics{
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_jobs_accepted_total", Help: "Requests accepted to be answered later.",
		}),
		finished: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_jobs_finished_total", Help: "Background jobs and lines of batches that this ingress brought to their end.",
		}, []string{"lane", "outcome"}),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_job_results_total", Help: "Workers' words on such jobs that this ingress took: an end, passed on, lost and to be dispatched again, or to be tried again later.",
		}, []string{"lane", "kind"}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_job_messages_lost_total", Help: "Jobs dispatched again because their message was gone from the queue.",
		}),
		backlog: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_jobs_undispatched_seconds", Help: "Age of the oldest background job that waits for its message.",
		}),
	}
	reg.MustRegister(m.accepted, m.finished, m.results, m.lost, m.backlog)
	return m
}
