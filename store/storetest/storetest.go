// Package storetest is the conformance suite of package store: whatever database
// keeps Sluice's memory passes it, so that nothing above the store needs to know
// which one it is.
//
// It tests what package store promises and nothing of how a database keeps it.
package storetest

import (
	"crypto/sha256"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/store"
)

// Open opens one more Store on the same database, and closes it when the test ends.
type Open func() store.Store

// Run runs the suite. For each of its tests newDatabase makes a database of its
// own, empty and without a schema.
func Run(t *testing.T, newDatabase func(t *testing.T) Open) {
	t.Run("schema", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, schemaTests)
	})
	t.Run("keys", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, keyTests)
		runAll(t, newDatabase, keyChangeTests)
	})
	t.Run("tenants", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, tenantTests)
	})
	t.Run("audit", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, auditTests)
	})
	t.Run("usage", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, usageTests)
		runAll(t, newDatabase, reportTests)
		runAll(t, newDatabase, spendTests)
	})
	t.Run("files", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, fileTests)
	})
	t.Run("jobs", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, jobTests)
	})
	t.Run("dispatch", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, dispatchTests)
		runAll(t, newDatabase, markTests)
	})
	t.Run("ends", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, endTests)
		runAll(t, newDatabase, lineTests)
		runAll(t, newDatabase, jobNewsTests)
	})
	t.Run("watch", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, watchTests)
		runAll(t, newDatabase, holdTests)
	})
	t.Run("batches", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, batchTests)
		runAll(t, newDatabase, batchLineTests)
		runAll(t, newDatabase, batchEndTests)
		runAll(t, newDatabase, batchFileTests)
		runAll(t, newDatabase, voidTests)
		runAll(t, newDatabase, batchRaceTests)
	})
	t.Run("idempotency", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, idempotencyTests)
	})
	t.Run("cache", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, cacheTests)
	})
	t.Run("webhooks", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, webhookTests)
	})
	t.Run("deliveries", func(t *testing.T) {
		t.Parallel()
		runAll(t, newDatabase, deliveryTests)
		runAll(t, newDatabase, deliveryLogTests)
	})
}

func runAll(t *testing.T, newDatabase func(t *testing.T) Open, tests map[string]func(*testing.T, Open)) {
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newDatabase(t))
		})
	}
}

// migrated opens a Store and gives its database the schema.
func migrated(t *testing.T, open Open) store.Store {
	t.Helper()
	s := open()
	require.NoError(t, s.Migrate(t.Context()))
	return s
}

// newKey returns a key that can be stored; its id and secret follow from its name.
func newKey(name string) store.Key {
	return store.Key{
		ID:      "id-" + name,
		Name:    name,
		Tenant:  "acme",
		Display: "sk-sluice-AbCd…wxyz",
		Hash:    sha256.Sum256([]byte(name)),
	}
}

// newRecord returns a record in which every field is set.
func newRecord(jobID string) inference.Record {
	return inference.Record{
		JobID:       jobID,
		RequestID:   "req-" + jobID,
		Kind:        inference.KindChat,
		Tenant:      "acme",
		KeyID:       "key-1",
		ModelAsked:  "gpt-4o-mini",
		Provider:    "openai",
		ModelServed: "gpt-4o-mini-2024-07-18",
		Stream:      true,
		Usage: inference.Usage{
			PromptTokens: 1200, CompletionTokens: 345, CachedTokens: 1024, ReasoningTokens: 99,
			Known: true, Estimated: true,
		},
		Attempts: 2,
		Tries: []inference.Try{
			{Provider: "openai", Model: "gpt-4o-mini", Code: inference.CodeUpstreamRateLimited, Status: 429, Took: 35 * time.Millisecond},
			{Provider: "azure", Model: "mini-eu", Code: inference.CodeUpstreamUnavailable, Took: 7 * time.Microsecond},
		},
		Outcome:    inference.OutcomeFailed,
		Status:     502,
		ErrorCode:  inference.CodeUpstreamCut,
		CreatedAt:  time.Date(2025, 3, 30, 1, 59, 59, 123456000, time.UTC),
		Queue:      1500 * time.Microsecond,
		FirstToken: 210*time.Millisecond + 7*time.Microsecond,
		Total:      3*time.Second + 1*time.Microsecond,
		Cost:       123_456_789,
		Priced:     true,
		Cache:      inference.CacheStale,
	}
}

// appendAll stores records and requires all of them to be new.
func appendAll(t *testing.T, s store.Store, records ...inference.Record) {
	t.Helper()
	inserted, err := s.AppendUsage(t.Context(), records)
	require.NoError(t, err)
	require.Equal(t, len(records), inserted)
}

// Untried is the job of the one record of AppendTried without tries.
const Untried = "untried"

// AppendTried stores a record with two tries and one without any. It is exported for
// tests that look at how a database keeps them.
func AppendTried(t *testing.T, s store.Store) {
	t.Helper()
	untried := newRecord(Untried)
	untried.Tries = []inference.Try{}
	appendAll(t, s, newRecord("tried"), untried)
}

// usage reads records and returns their job ids beside them.
func usage(t *testing.T, s store.Store, filter store.UsageFilter) ([]inference.Record, []string) {
	t.Helper()
	records, err := s.Usage(t.Context(), filter)
	require.NoError(t, err)
	ids := make([]string, len(records))
	for i, r := range records {
		ids[i] = r.JobID
	}
	return records, ids
}
