package ingress

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/internal/queue"
)

// operateCollector tells what operators look at: the providers' states, which it knows, and
// what NATS says of their queues and dead letters, at most once a second however often
// metrics are read.
type operateCollector struct {
	ingress *Ingress

	mu      sync.Mutex
	at      time.Time
	depths  map[string][]queue.LaneDepth
	letters map[string]int
}

var (
	stateDesc   = prometheus.NewDesc("sluice_provider_state", "What operators want of the provider: 1 for the state that it is in (active, paused, draining), 0 for the others.", []string{"provider", "state"}, nil)
	oldestDesc  = prometheus.NewDesc("sluice_queue_oldest_seconds", "Age of the oldest job in the provider's lane that no worker has had; 0 when none waits.", []string{"provider", "lane"}, nil)
	lettersDesc = prometheus.NewDesc("sluice_dead_letters", "Dead letters of the provider; those of results and usage under these names.", []string{"provider"}, nil)
)

// Describe implements prometheus.Collector.
func (c *operateCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- stateDesc
	ch <- oldestDesc
	ch <- lettersDesc
}

// Collect implements prometheus.Collector.
func (c *operateCollector) Collect(ch chan<- prometheus.Metric) {
	states := c.ingress.workers.states()
	for name, p := range states {
		for _, state := range []queue.ProviderState{queue.ProviderActive, queue.ProviderPaused, queue.ProviderDraining} {
			value := 0.0
			if p.state() == state {
				value = 1
			}
			ch <- prometheus.MustNewConstMetric(stateDesc, prometheus.GaugeValue, value, name, string(state))
		}
	}
	depths, letters := c.read(states)
	now := time.Now()
	for name, lanes := range depths {
		for _, d := range lanes {
			age := 0.0
			if !d.Oldest.IsZero() {
				age = max(now.Sub(d.Oldest).Seconds(), 0)
			}
			ch <- prometheus.MustNewConstMetric(oldestDesc, prometheus.GaugeValue, age, name, string(d.Lane))
		}
	}
	for name, n := range letters {
		ch <- prometheus.MustNewConstMetric(lettersDesc, prometheus.GaugeValue, float64(n), name)
	}
}

func (c *operateCollector) read(states map[string]providerState) (map[string][]queue.LaneDepth, map[string]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.at) < time.Second {
		return c.depths, c.letters
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c.depths, c.letters = make(map[string][]queue.LaneDepth, len(states)), make(map[string]int, len(states))
	names, err := c.ingress.conn.Holding(ctx)
	if err != nil {
		names = make(map[string]bool)
	}
	for name := range states {
		names[name] = true
	}
	for name := range names {
		if d, err := c.ingress.conn.Depths(ctx, name); err == nil {
			c.depths[name] = d
		}
	}
	if counts, err := c.ingress.conn.CountLetters(ctx); err == nil {
		for name := range states {
			c.letters[name] = 0
		}
		maps.Copy(c.letters, counts)
	}
	c.at = time.Now()
	return c.depths, c.letters
}
