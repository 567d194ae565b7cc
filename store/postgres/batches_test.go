package postgres_test

import (
	"context"
	"testing"
	"time"

	"sluice/internal/testkit"
	"sluice/store"
	"sluice/store/postgres"
	"sluice/store/storetest"
)

// What batches cost the database.
func BenchmarkBatches(b *testing.B) {
	storetest.BenchmarkBatches(b, open(b, testkit.Postgres(b), postgres.Options{}))
}

// batchCalls has every method for batches, for the tests of a database that does not
// answer.
func batchCalls(ctx context.Context, s *postgres.Store) map[string]func() error {
	now := time.Now()
	batch := store.Batch{ID: "id", Tenant: "acme", CreatedAt: now, ExpiresAt: now}
	end := store.BatchEnd{Status: store.BatchCompleted, At: now}
	return map[string]func() error{
		"CreateBatch":    func() error { return s.CreateBatch(ctx, batch) },
		"Batch":          func() error { _, err := s.Batch(ctx, "acme", "id"); return err },
		"ListBatches":    func() error { _, err := s.ListBatches(ctx, store.BatchFilter{Tenant: "acme"}); return err },
		"LeaseBatches":   func() error { _, err := s.LeaseBatches(ctx, "me", now, 1, 1); return err },
		"VoidLeases":     func() error { return s.VoidLeases(ctx, now) },
		"ReleaseBatches": func() error { return s.ReleaseBatches(ctx, "me") },
		"AddLines":       func() error { return s.AddLines(ctx, "me", "id", nil, 1, nil) },
		"LineIDs":        func() error { _, err := s.LineIDs(ctx, "id", 0, 1); return err },
		"BeginBatch":     func() error { return s.BeginBatch(ctx, "me", "id", now) },
		"FailBatch":      func() error { return s.FailBatch(ctx, "me", "id", now, now) },
		"CancelBatch":    func() error { _, err := s.CancelBatch(ctx, "acme", "id", now); return err },
		"LeaseLines":     func() error { _, err := s.LeaseLines(ctx, "id", now, 1, 1); return err },
		"Backlogs":       func() error { _, err := s.Backlogs(ctx); return err },
		"EndLines":       func() error { _, err := s.EndLines(ctx, "id", store.JobExpired, now, 1); return err },
		"FinalizeBatch":  func() error { return s.FinalizeBatch(ctx, "me", "id", now) },
		"FinishedLines":  func() error { _, err := s.FinishedLines(ctx, "id", store.LineFilter{}); return err },
		"CompleteBatch":  func() error { return s.CompleteBatch(ctx, "me", "id", end) },
		"NoteRate":       func() error { return s.NoteRate(ctx, "me", "id", 1) },
		"DropLines":      func() error { _, err := s.DropLines(ctx, now, 1); return err },
		"PurgeBatches":   func() error { _, err := s.PurgeBatches(ctx, now, 1); return err },
	}
}
