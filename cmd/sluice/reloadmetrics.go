package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/internal/adminapi"
)

// reloadMetrics show which configuration is in force, and how the last reload went.
type reloadMetrics struct {
	successful, successAt, restart prometheus.Gauge
	reloads                        *prometheus.CounterVec
	info                           *prometheus.GaugeVec
}

func newReloadMetrics() reloadMetrics {
	return reloadMetrics{
		successful: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_config_last_reload_successful", Help: "Whether the configuration could be read the last time: 1, or 0 when what was in force before still is.",
		}),
		successAt: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_config_last_reload_success_timestamp_seconds", Help: "When the configuration was last read and put in force, Unix time.",
		}),
		restart: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_config_restart_needed", Help: "Whether the file holds a change that takes force at the next start alone.",
		}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_config_reloads_total", Help: "Reloads of the configuration by their result: success or failure.",
		}, []string{"result"}),
		info: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_config_info", Help: "The hash of the configuration file in force; always 1.",
		}, []string{"hash"}),
	}
}

// Results of a reload.
const (
	reloadSuccess = "success"
	reloadFailure = "failure"
)

// register shows the configuration that the process has started with.
func (m reloadMetrics) register(reg prometheus.Registerer, s adminapi.ConfigState) {
	reg.MustRegister(m.successful, m.successAt, m.restart, m.reloads, m.info)
	for _, result := range []string{reloadSuccess, reloadFailure} {
		m.reloads.WithLabelValues(result)
	}
	m.show(s, s.LoadedAt)
}

func (m reloadMetrics) succeeded(s adminapi.ConfigState, now time.Time) {
	m.reloads.WithLabelValues(reloadSuccess).Inc()
	m.show(s, now)
}

func (m reloadMetrics) failed() {
	m.reloads.WithLabelValues(reloadFailure).Inc()
	m.successful.Set(0)
}

func (m reloadMetrics) show(s adminapi.ConfigState, now time.Time) {
	m.successful.Set(1)
	m.successAt.Set(float64(now.UnixMilli()) / 1000)
	m.info.Reset()
	m.info.WithLabelValues(s.Hash).Set(1)
	m.restart.Set(0)
	if len(s.NeedsRestart) > 0 {
		m.restart.Set(1)
	}
}
