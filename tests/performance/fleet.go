package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"sluice/internal/testkit"
	"sluice/store"
	"sluice/store/sqlite"
)

const (
	fleetLoad       = 0.9 // of what the fleet can do
	burstFactor     = 5   // times what it can do
	fleetPatience   = 30 * time.Second
	burstPatience   = 150 * time.Second
	fleetQueueLimit = 20_000
	ledgerPoll      = 500 * time.Millisecond
	ledgerPatience  = 15 * time.Second
)

// fleet loads four unequal upstreams that serve the same model: the proxy deals
// requests out in turn, and of Sluice's workers, one beside each upstream, each takes
// what it has room for from the queue they share. Then a burst shows what that queue
// does with more than the fleet can take.
//
// The proxy gives each upstream a quarter, which is more than the two smaller ones can
// do, so that requests pile up in them for as long as the load lasts: that length is
// part of its 99th percentile, and the fleet's queue alone has no such part.
func (m *measurement) fleet(ctx context.Context) error {
	possible := capacity(fleetMembers())
	result, _, err := m.load(ctx, loadSpec{
		Mode: "open", Rate: fleetLoad * possible, Even: m.even, Connections: closedConnections, Numbered: true,
		Warmup: m.fleetWarmup, Duration: m.fleetLoaded, Patience: fleetPatience,
	})
	if err != nil {
		return err
	}
	m.figures["fleet_p50"] = result.Latency.P50
	m.figures["fleet_p99"] = result.Latency.P99
	if m.system.name == systemFloor {
		return nil
	}
	return m.burst(ctx, burstFactor*possible)
}

// burst sends more than the fleet can do for a while and waits until it is done.
func (m *measurement) burst(ctx context.Context, rate float64) error {
	if _, err := takeBegan(ctx, m.members[0]); err != nil { // what began before is no part of it
		return err
	}
	start := time.Now()
	result, _, err := m.load(ctx, loadSpec{
		Mode: "open", Rate: rate, Even: m.even, Connections: closedConnections, Numbered: true,
		Duration: m.fleetBurst, Patience: burstPatience,
	})
	if err != nil {
		return err
	}
	lost := int64(result.Refusals.Count)
	for _, n := range result.Failures {
		lost += int64(n)
	}
	requests := int64(result.Latency.Count) + lost
	accepted, err := acceptedSince(ctx, m.system.ledger, start, int(requests))
	if err != nil {
		return err
	}
	all, err := takeBegan(ctx, m.members[0])
	if err != nil {
		return err
	}
	d := disorderOf(byAge(all, accepted))
	m.figures["burst_requests"] = float64(requests)
	m.figures["burst_lost"] = float64(lost)
	m.figures["burst_unrecorded"] = float64(requests - int64(len(accepted)))
	m.figures["burst_repeats"] = float64(d.repeats)
	m.figures["burst_passed"] = float64(d.passed)
	m.figures["burst_late"] = milliseconds(d.late)
	return nil
}

// acceptedSince reads from the ledger when the ingress accepted each numbered request
// after start. Rows come shortly after the answers: it waits until there are as many
// as requests, for a while.
func acceptedSince(ctx context.Context, path string, start time.Time, requests int) (accepted map[int]time.Time, err error) {
	db, err := sqlite.Open(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	poll := time.NewTicker(ledgerPoll)
	defer poll.Stop()
	for end := time.Now().Add(ledgerPatience); ; {
		if accepted, err = readAccepted(ctx, db, start); err != nil {
			return nil, err
		}
		if len(accepted) >= requests || time.Now().After(end) {
			return accepted, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-poll.C:
		}
	}
}

func readAccepted(ctx context.Context, ledger store.Ledger, start time.Time) (map[int]time.Time, error) {
	accepted := map[int]time.Time{}
	for filter := (store.UsageFilter{Limit: store.MaxPage}); ; {
		page, err := ledger.Usage(ctx, filter)
		if err != nil {
			return nil, fmt.Errorf("read the ledger: %w", err)
		}
		for _, r := range page {
			if r.CreatedAt.Before(start) {
				return accepted, nil // newest first
			}
			if n, numbered := requestNumber(r.RequestID); numbered {
				accepted[n] = r.CreatedAt
			}
		}
		if len(page) < store.MaxPage {
			return accepted, nil
		}
		filter.After = store.CursorOf(page[len(page)-1])
	}
}

// startFleet starts an ingress, and a worker of its own for each upstream, which all
// share one provider's queue.
func (r *running) startFleet(ctx context.Context, b *bench, dir string, targets []string) error {
	server, err := testkit.NewNATSServer(ctx, dir)
	if err != nil {
		return err
	}
	r.end = append(r.end, server.Stop)
	r.pids = append(r.pids, server.PID())
	members := fleetMembers()
	for i, target := range targets {
		name := "worker-" + strconv.Itoa(i+1)
		worker := func(address string) string {
			return workerConfig(address, server.URL(), target, slotsOf(members), members[i].slots)
		}
		if _, err := r.startRole(ctx, b, dir, name, worker, "worker", "--provider", "fleet"); err != nil {
			return err
		}
	}
	data := filepath.Join(dir, "data")
	r.ledger = filepath.Join(data, "sluice.db")
	r.address, err = r.startRole(ctx, b, dir, "ingress", func(address string) string {
		return ingressConfig(address, data, server.URL(), b.key, slotsOf(members))
	}, "ingress")
	return err
}

// workerConfig keeps the number of calls fixed: the fleet's upstreams are loaded to
// their slots on purpose, and how that number adapts is not what is measured.
func workerConfig(address, queue, target string, concurrency, slots int) string {
	return fmt.Sprintf(`queue: {url: %q}
providers:
  fleet: {type: openai, base_url: "http://%s/v1", api_key: x, models: [bench], max_queued: %d, concurrency: %d, min_concurrency: %d, worker_concurrency: %d}
observability: {address: %q}
`, queue, target, fleetQueueLimit, concurrency, concurrency, slots, address)
}

func ingressConfig(address, data, queue, key string, concurrency int) string {
	return fmt.Sprintf(`server: {address: %q, max_in_flight: %d}
data_dir: %q
queue: {url: %q}
auth: {keys: [{name: bench, key: %q}]}
providers:
  fleet: {models: [bench], max_queued: %d, concurrency: %d}
`, address, fleetQueueLimit, data, queue, key, fleetQueueLimit, concurrency)
}
