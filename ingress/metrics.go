package ingress

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// Metrics are what an ingress counts. Labels are provider names, outcomes, error codes
// and statuses: all of them few. Models and keys are in the ledger, not here.
type Metrics struct {
	reg prometheus.Registerer

	requests    *prometheus.CounterVec
	failures    *prometheus.CounterVec
	refusals    *prometheus.CounterVec
	republishes *prometheus.CounterVec
	attempts    *prometheus.CounterVec
	tokens      *prometheus.CounterVec
	cost        *prometheus.CounterVec
	unpriced    *prometheus.CounterVec
	wait        *prometheus.HistogramVec
	firstToken  *prometheus.HistogramVec
	total       *prometheus.HistogramVec
	overhead    *prometheus.HistogramVec
	streams     prometheus.Gauge
	ledgerRows  prometheus.Counter

	byProvider sync.Map // provider name → *providerSeries
}

// providerSeries are the series of one provider's succeeded requests, looked up once.
type providerSeries struct {
	succeeded                               prometheus.Counter
	attempts                                prometheus.Counter
	prompt, completion, cached, reasoning   prometheus.Counter
	cost                                    prometheus.Counter
	wait, firstToken, total, answerOverhead prometheus.Observer
}

// NewMetrics registers the ingress's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	histogram := func(name, help string, start float64, n int) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(start, 2, n)}, []string{"provider"})
		reg.MustRegister(h)
		return h
	}
	m := &Metrics{
		reg:         reg,
		requests:    counter("sluice_requests_total", "Accepted requests by how they ended.", "provider", "outcome"),
		failures:    counter("sluice_errors_total", "Responses with an error.", "status", "code"),
		refusals:    counter("sluice_refused_total", "Requests refused because the provider's queue was full or not there.", "provider"),
		republishes: counter("sluice_republished_total", "Jobs published again because the queue had not confirmed or had lost them.", "provider"),
		attempts:    counter("sluice_attempts_total", "Calls of a provider made for accepted requests, retries and lost workers included.", "provider"),
		tokens:      counter("sluice_tokens_total", "Tokens as providers report them.", "provider", "type"),
		cost:        counter("sluice_cost_total", "Cost of requests, in the currency of the prices.", "provider"),
		unpriced:    counter("sluice_unpriced_total", "Requests whose tokens are known, but not their price.", "provider"),
		wait:        histogram("sluice_queue_wait_seconds", "Time from acceptance to the start of the work.", 0.0001, 24),
		firstToken:  histogram("sluice_first_token_seconds", "Time from acceptance to the first token of a streamed answer.", 0.001, 20),
		total:       histogram("sluice_request_duration_seconds", "Time from acceptance to the whole answer.", 0.001, 20),
		overhead:    histogram("sluice_overhead_seconds", "Time that Sluice itself spent on a plain request, waiting in the queue not included.", 0.00005, 16),
		streams:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "sluice_open_streams", Help: "Streamed answers being sent to clients."}),
		ledgerRows:  prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_ledger_rows_total", Help: "Usage rows that this ingress brought into the database."}),
	}
	reg.MustRegister(m.streams, m.ledgerRows)
	return m
}

func (m *Metrics) of(provider string) *providerSeries {
	if v, ok := m.byProvider.Load(provider); ok {
		if s, ok := v.(*providerSeries); ok {
			return s
		}
	}
	s := &providerSeries{
		succeeded: m.requests.WithLabelValues(provider, string(inference.OutcomeSucceeded)),
		attempts:  m.attempts.WithLabelValues(provider),
		prompt:    m.tokens.WithLabelValues(provider, "prompt"), completion: m.tokens.WithLabelValues(provider, "completion"),
		cached: m.tokens.WithLabelValues(provider, "cached"), reasoning: m.tokens.WithLabelValues(provider, "reasoning"),
		cost: m.cost.WithLabelValues(provider),
		wait: m.wait.WithLabelValues(provider), firstToken: m.firstToken.WithLabelValues(provider),
		total: m.total.WithLabelValues(provider), answerOverhead: m.overhead.WithLabelValues(provider),
	}
	m.byProvider.Store(provider, s)
	return s
}

// ended counts an accepted request that is over.
func (m *Metrics) ended(r *inference.Record) {
	m.spent(r)
	s := m.of(r.Provider)
	s.wait.Observe(r.Queue.Seconds())
	s.total.Observe(r.Total.Seconds())
	if r.FirstToken > 0 {
		s.firstToken.Observe(r.FirstToken.Seconds())
	}
}

// spent counts what a request took, whenever it was answered.
func (m *Metrics) spent(r *inference.Record) {
	s := m.of(r.Provider)
	if r.Outcome == inference.OutcomeSucceeded {
		s.succeeded.Inc()
	} else {
		m.requests.WithLabelValues(r.Provider, string(r.Outcome)).Inc()
	}
	s.attempts.Add(float64(r.Attempts))
	s.prompt.Add(float64(r.Usage.PromptTokens))
	s.completion.Add(float64(r.Usage.CompletionTokens))
	s.cached.Add(float64(r.Usage.CachedTokens))
	s.reasoning.Add(float64(r.Usage.ReasoningTokens))
	s.cost.Add(inCurrency(r.Cost))
	if r.Usage.Known && !r.Priced {
		m.unpriced.WithLabelValues(r.Provider).Inc()
	}
}

func (m *Metrics) answered(provider string, own time.Duration) {
	m.of(provider).answerOverhead.Observe(own.Seconds())
}

func (m *Metrics) failed(status int, code inference.ErrorCode) {
	m.failures.WithLabelValues(statusText(status), string(code)).Inc()
}

func (m *Metrics) refused(provider string)     { m.refusals.WithLabelValues(provider).Inc() }
func (m *Metrics) republished(provider string) { m.republishes.WithLabelValues(provider).Inc() }

func statusText(status int) string {
	b := [3]byte{byte('0' + status/100%10), byte('0' + status/10%10), byte('0' + status%10)}
	return string(b[:])
}

// watch registers what is asked for when metrics are read.
func (m *Metrics) watch(s *Ingress) {
	m.reg.MustRegister(&queueCollector{ingress: s}, &operateCollector{ingress: s})
	m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sluice_in_flight", Help: "Accepted requests that are not yet accounted for.",
	}, func() float64 { return float64(s.flights.count()) }))
}

// queueCollector asks NATS for the depth of each provider's queue, at most once a
// second however often metrics are read.
type queueCollector struct {
	ingress *Ingress

	mu     sync.Mutex
	at     time.Time
	depths map[string]queue.Depth
}

var (
	depthDesc   = prometheus.NewDesc("sluice_queue_depth", "Jobs in the provider's queue: waiting for a worker, or held by one.", []string{"provider", "state"}, nil)
	workersDesc = prometheus.NewDesc("sluice_workers", "Workers that serve the provider now.", []string{"provider"}, nil)
)

// Describe implements prometheus.Collector.
func (c *queueCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- depthDesc
	ch <- workersDesc
}

// Collect implements prometheus.Collector.
func (c *queueCollector) Collect(ch chan<- prometheus.Metric) {
	states := c.ingress.workers.states()
	for name, d := range c.read(states) {
		ch <- prometheus.MustNewConstMetric(depthDesc, prometheus.GaugeValue, float64(d.Waiting), name, "waiting")
		ch <- prometheus.MustNewConstMetric(depthDesc, prometheus.GaugeValue, float64(d.Running), name, "running")
	}
	for name, s := range states {
		ch <- prometheus.MustNewConstMetric(workersDesc, prometheus.GaugeValue, float64(s.Workers), name)
	}
}

func (c *queueCollector) read(states map[string]providerState) map[string]queue.Depth {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.at) < time.Second {
		return c.depths
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c.depths = make(map[string]queue.Depth, len(states))
	for name := range states {
		if d, err := c.ingress.conn.Depth(ctx, name); err == nil {
			c.depths[name] = d
		}
	}
	c.at = time.Now()
	return c.depths
}
