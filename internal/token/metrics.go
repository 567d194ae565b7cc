package token

import "github.com/prometheus/client_golang/prometheus"

// Metrics are what a verifier counts. Labels are the few words of this package.
type Metrics struct {
	refused   *prometheus.CounterVec
	refreshes *prometheus.CounterVec
}

// NewMetrics registers the metrics of tokens.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_token_refused_total", Help: "Tokens of identity providers that were refused, by why.",
		}, []string{"reason"}),
		refreshes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_jwks_refresh_total", Help: "Times that the keys of an identity provider were read, by how it went.",
		}, []string{"result"}),
	}
	reg.MustRegister(m.refused, m.refreshes)
	return m
}

func (m *Metrics) refreshed(err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.refreshes.WithLabelValues(result).Inc()
}
