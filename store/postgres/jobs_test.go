package postgres_test

import (
	"context"
	"testing"
	"time"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/store"
	"sluice/store/postgres"
	"sluice/store/storetest"
)

// What background jobs cost the database.
func BenchmarkJobs(b *testing.B) {
	storetest.BenchmarkJobs(b, open(b, testkit.Postgres(b), postgres.Options{}))
}

// jobCalls has every method for jobs and idempotency keys, for the tests of a database
// that does not answer.
func jobCalls(ctx context.Context, s *postgres.Store) map[string]func() error {
	now := time.Now()
	job := store.Job{ID: "id", Tenant: "acme", Body: []byte("{}"), CreatedAt: now, Candidates: make([]inference.Candidate, 1)}
	end := store.JobEnd{Status: store.JobFailed, FinishedAt: now, Record: inference.Record{JobID: "id"}}
	request := store.IdempotentRequest{Tenant: "acme", Key: "key", Owner: "me"}
	return map[string]func() error{
		"CreateJob":      func() error { return s.CreateJob(ctx, job) },
		"Job":            func() error { _, err := s.Job(ctx, "acme", "id"); return err },
		"ListJobs":       func() error { _, err := s.ListJobs(ctx, store.JobFilter{Tenant: "acme"}); return err },
		"LeaseJobs":      func() error { _, err := s.LeaseJobs(ctx, now, 1, 1); return err },
		"MarkDispatched": func() error { _, err := s.MarkDispatched(ctx, []store.Dispatch{{ID: "id"}}, now); return err },
		"ClaimJob":       func() error { _, err := s.ClaimJob(ctx, "id", 0, now); return err },
		"MoveJob":        func() error { return s.MoveJob(ctx, "id", 0, "p", 1, 0, nil, now) },
		"Dispatched":     func() error { _, err := s.Dispatched(ctx, now, 1); return err },
		"JobsByID":       func() error { _, err := s.JobsByID(ctx, []string{"id"}); return err },
		"JobBody":        func() error { _, err := s.JobBody(ctx, "id"); return err },
		"HeldBy":         func() error { _, err := s.HeldBy(ctx); return err },
		"AdoptedJobs":    func() error { _, err := s.AdoptedJobs(ctx, "a", []string{"id"}); return err },
		"AdoptJobs":      func() error { _, err := s.AdoptJobs(ctx, "a", "b", 1); return err },
		"Confirm":        func() error { return s.Confirm(ctx, []string{"id"}, now) },
		"Requeue":        func() error { _, err := s.Requeue(ctx, []store.Requeue{{ID: "id"}}); return err },
		"FinishJobs":     func() error { _, err := s.FinishJobs(ctx, []store.JobEnd{end}); return err },
		"CancelJob": func() error {
			_, _, err := s.CancelJob(ctx, "acme", "id", now, now, inference.Record{})
			return err
		},
		"ExpireJobs": func() error { _, err := s.ExpireJobs(ctx, now, 0, 1); return err },
		"PurgeJobs":  func() error { _, err := s.PurgeJobs(ctx, now, 1); return err },
		"BeginIdempotent": func() error {
			_, err := s.BeginIdempotent(ctx, request, now, time.Second, time.Hour)
			return err
		},
		"RenewIdempotent":  func() error { return s.RenewIdempotent(ctx, "acme", "key", "me", now) },
		"FinishIdempotent": func() error { return s.FinishIdempotent(ctx, "acme", "key", "me", store.IdempotentAnswer{}) },
		"DropIdempotent":   func() error { return s.DropIdempotent(ctx, "acme", "key", "me") },
		"PurgeIdempotent":  func() error { _, err := s.PurgeIdempotent(ctx, now, 1); return err },
	}
}

// What the ledger costs the database.
func BenchmarkUsage(b *testing.B) {
	storetest.BenchmarkUsage(b, open(b, testkit.Postgres(b), postgres.Options{}))
}

// What the cache costs the database.
func BenchmarkCache(b *testing.B) {
	storetest.BenchmarkCache(b, open(b, testkit.Postgres(b), postgres.Options{}))
}
