package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/ingress"
	"sluice/internal/config"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/pricing"
	"sluice/internal/queue"
	"sluice/store"
)

// limitSettings are the limits that the configuration names.
func limitSettings(cfg *config.Config, prices *pricing.Table) ingress.LimitSettings {
	r := cfg.RateLimit
	l := ingress.LimitSettings{
		FailOpen: r.OnError == "fail_open", DefaultOutput: int64(r.DefaultOutputTokens),
		Key: r.Key.Policy(), Tenant: r.Tenant.Policy(), Tenants: make(map[string]*limits.Limits, len(cfg.Auth.Tenants)),
		Price: prices.Estimate, RowCost: prices.RowCost,
	}
	for _, t := range cfg.Auth.Tenants {
		l.Tenants[t.Name] = ownLimits(&t.Limits)
	}
	for _, m := range r.Models {
		l.Models = append(l.Models, m.Policy())
	}
	return l
}

// ownLimits are the limits of a holder that has some of its own, else nil. What becomes of a
// request that does not fit always stands in the file, also where nobody wrote it: without a
// bound it says nothing.
func ownLimits(own *config.Limits) *limits.Limits {
	if own == nil {
		return nil
	}
	policy := own.Policy()
	if policy.IsZero() {
		return nil
	}
	return &policy
}

// runningLimiter is a limiter with its own loop.
type runningLimiter struct {
	*limits.Limiter
	stop func()
}

// startLimiter starts what counts towards limits. It outlives the ingress, whose last
// requests give back what they hold. With a queue of its own the process has all workers in it,
// and so no request outlives it.
func startLimiter(conn *queue.Conn, id string, alone bool, db store.Store, reg prometheus.Registerer, log *slog.Logger) runningLimiter {
	swaps := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "sluice_limit_swap_seconds", Help: "Time to change the record of one holder of limits, by what came of it.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2, 14),
	}, []string{"result"})
	l := limits.New(limits.Options{
		Counters: conn.NewCounters(), Logger: log, Ingress: id, Alone: alone,
		Spent: func(ctx context.Context, scope limits.Scope, since time.Time) (inference.Cost, error) {
			return db.SpentSince(ctx, ingress.SpendScope(scope), since)
		},
		Swapped: func(result limits.SwapResult, took time.Duration) {
			swaps.WithLabelValues(string(result)).Observe(took.Seconds())
		},
	})
	reg.MustRegister(swaps, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sluice_limit_scopes", Help: "Holders of limits that this ingress counts for.",
	}, func() float64 { return float64(l.Scopes()) }))
	ctx, cancel := context.WithCancel(context.Background())
	var loop sync.WaitGroup
	loop.Go(func() { _ = l.Run(ctx) }) // it ends with ctx alone
	return runningLimiter{l, func() {
		cancel()
		loop.Wait()
	}}
}
