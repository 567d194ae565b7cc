package storetest

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/webhook"
	"sluice/store"
)

// owner is the ingress that works on the batches of these tests.
const owner = "ingress-1"

// newBatch returns a batch in which everything is set that a new batch has.
func newBatch(id string) store.Batch {
	return store.Batch{
		ID: id, Tenant: "acme", KeyID: "key-1", KeyName: "ci",
		Endpoint: "/v1/chat/completions", Kind: inference.KindChat, Model: "fast", InputFile: "file-in",
		CompletionWindow: 24 * time.Hour, OutputExpires: time.Hour,
		Metadata:  map[string]string{"run": "7", "имя": strings.Repeat("ü", 512)},
		Status:    store.BatchValidating,
		CreatedAt: noon.Add(123456 * time.Microsecond), ExpiresAt: noon.Add(24 * time.Hour),
		Owner: owner, LeasedUntil: noon.Add(time.Minute),
		Caller: &store.BatchCaller{Models: []string{"m", "gpt-*"}, Limits: &limits.Limits{Queued: 3, OnLimit: limits.Queue}},
		Usage:  inference.Usage{Known: true},
	}
}

func createBatch(t *testing.T, s store.Store, id string) store.Batch {
	t.Helper()
	require.NoError(t, s.CreateBatch(t.Context(), newBatch(id)))
	return newBatch(id)
}

// freeBatch makes a batch that nobody has.
func freeBatch(t *testing.T, s store.Store, id string, at time.Time) {
	t.Helper()
	b := newBatch(id)
	b.Owner, b.LeasedUntil, b.CreatedAt = "", time.Time{}, at
	require.NoError(t, s.CreateBatch(t.Context(), b))
}

// batch reads acme's batch of that id.
func batch(t *testing.T, s store.Store, id string) store.Batch {
	t.Helper()
	b, err := s.Batch(t.Context(), "acme", id)
	require.NoError(t, err)
	return b
}

func leaseBatches(t *testing.T, s store.Store, owner string, now time.Time, limit int) []store.Batch {
	t.Helper()
	batches, err := s.LeaseBatches(t.Context(), owner, now, lease, limit)
	require.NoError(t, err)
	return batches
}

func batchIDs(batches []store.Batch) []string {
	ids := make([]string, len(batches))
	for i, b := range batches {
		ids[i] = b.ID
	}
	return ids
}

// endOf is how the batches of these tests end, each time with other files.
func endOf(status store.BatchStatus) store.BatchEnd {
	output, failed := newFile(store.NewFileID()), newFile(store.NewFileID())
	return store.BatchEnd{
		Status: status, OutputFile: &output, ErrorFile: &failed,
		At: noon.Add(time.Hour), Purge: noon.Add(30 * 24 * time.Hour),
	}
}

// requireEvents requires the events that a tenant's endpoint has been sent.
func requireEvents(t *testing.T, s store.Store, want ...string) {
	t.Helper()
	reports, err := s.Deliveries(t.Context(), store.DeliveryFilter{Tenant: "acme"})
	require.NoError(t, err)
	got := []string{}
	for _, r := range reports {
		got = append(got, r.Type+" "+r.ObjectID)
	}
	require.ElementsMatch(t, want, got)
}

var batchTests = map[string]func(*testing.T, Open){
	"a new batch comes back as it was stored": func(t *testing.T, open Open) {
		s := migrated(t, open)
		want := createBatch(t, s, "batch_1")
		require.Equal(t, want, batch(t, open(), "batch_1"), "for another process too")

		bare := store.Batch{ID: "bare", Tenant: "acme", CreatedAt: noon, ExpiresAt: noon}
		require.NoError(t, s.CreateBatch(t.Context(), bare))
		bare.Status, bare.Usage.Known = store.BatchValidating, true
		require.Equal(t, bare, batch(t, s, "bare"))
	},

	"a new batch has no course behind it": func(t *testing.T, open Open) {
		s := migrated(t, open)
		b := newBatch("batch_1")
		b.Status, b.InProgressAt, b.CompletedAt, b.PurgeAt = store.BatchCompleted, noon, noon, noon
		b.Total, b.Completed, b.Failed, b.ReadBytes, b.Rate = 3, 2, 1, 9, 5
		b.OutputFile, b.Faults = "file-out", []store.BatchFault{{Code: "x"}}
		require.NoError(t, s.CreateBatch(t.Context(), b))
		require.Equal(t, newBatch("batch_1"), batch(t, s, "batch_1"))
	},

	"texts and times come back as they can be stored": func(t *testing.T, open Open) {
		s := migrated(t, open)
		b := newBatch("batch_1")
		b.CreatedAt = time.Date(2025, 6, 2, 3, 0, 0, 1999, time.FixedZone("east", 5*3600))
		b.Endpoint, b.KeyName, b.InputFile = "a\x00b", "\xff", strings.Repeat("é", 1<<10)
		b.Metadata = map[string]string{"k\x00": "v\x00", "not \xff": "'; DROP TABLE batches; --"}
		require.NoError(t, s.CreateBatch(t.Context(), b))
		got := batch(t, s, "batch_1")
		want, err := b.Clean()
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, map[string]string{"k": "v", "not \uFFFD": "'; DROP TABLE batches; --"}, got.Metadata)
		require.Equal(t, time.Date(2025, 6, 1, 22, 0, 0, 1000, time.UTC), got.CreatedAt)
	},

	"a batch that cannot be stored is refused": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for name, change := range map[string]func(*store.Batch){
			"no id":               func(b *store.Batch) { b.ID = "" },
			"id not text":         func(b *store.Batch) { b.ID = "a\x00" },
			"no tenant":           func(b *store.Batch) { b.Tenant = "" },
			"no time":             func(b *store.Batch) { b.CreatedAt = time.Time{} },
			"no end of window":    func(b *store.Batch) { b.ExpiresAt = time.Time{} },
			"window below zero":   func(b *store.Batch) { b.CompletionWindow = -1 },
			"too much metadata":   func(b *store.Batch) { b.Metadata = manyTexts(store.MaxMetadata + 1) },
			"metadata too long":   func(b *store.Batch) { b.Metadata = map[string]string{"k": strings.Repeat("x", 2049)} },
			"a name that is long": func(b *store.Batch) { b.Metadata = map[string]string{strings.Repeat("x", 513): ""} },
		} {
			b := newBatch("wrong")
			change(&b)
			require.ErrorIs(t, s.CreateBatch(t.Context(), b), store.ErrInvalid, name)
		}
		createBatch(t, s, "batch_1")
		second := newBatch("batch_1")
		second.Tenant = "other"
		require.ErrorIs(t, s.CreateBatch(t.Context(), second), store.ErrDuplicate)
		require.Equal(t, newBatch("batch_1"), batch(t, s, "batch_1"))
	},

	"another tenant's batch is not there": func(t *testing.T, open Open) {
		s := migrated(t, open)
		want := createBatch(t, s, "batch_1")
		for _, c := range [][2]string{{"other", "batch_1"}, {"", "batch_1"}, {"acme", "batch_2"}, {"acme\x00x", "batch\xff"}} {
			_, err := s.Batch(t.Context(), c[0], c[1])
			require.ErrorIs(t, err, store.ErrNotFound, c)
			_, err = s.CancelBatch(t.Context(), c[0], c[1], noon)
			require.ErrorIs(t, err, store.ErrNotFound, c)
		}
		require.Equal(t, want, batch(t, s, "batch_1"))
	},

	"a list is one tenant's, newest first, page by page": batchPages,

	"a batch goes from status to status": statuses,

	"a status that does not fit is a conflict, and a final one is final": conflicts,

	"a cancelled batch ends as cancelled": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for _, id := range []string{"validating", "running"} {
			createBatch(t, s, id)
		}
		require.NoError(t, s.BeginBatch(t.Context(), owner, "running", noon))
		for _, id := range []string{"validating", "running"} {
			got, err := s.CancelBatch(t.Context(), "acme", id, noon.Add(time.Minute))
			require.NoError(t, err)
			require.Equal(t, store.BatchCancelling, got.Status)
			require.Equal(t, noon.Add(time.Minute), got.CancellingAt)
			require.Equal(t, batch(t, s, id), got)
			again, err := s.CancelBatch(t.Context(), "acme", id, noon.Add(time.Hour))
			require.NoError(t, err)
			require.Equal(t, got, again)
			require.NoError(t, s.FinalizeBatch(t.Context(), owner, id, noon.Add(2*time.Minute)))
			require.NoError(t, s.CompleteBatch(t.Context(), owner, id, endOf(store.BatchCancelled)))
			require.Equal(t, endOf("").At, batch(t, s, id).CancelledAt)
		}
	},

	"an end is told in the transaction that stores it": func(t *testing.T, open Open) {
		s := migrated(t, open)
		addWebhook(t, s, newWebhook())
		for _, status := range []store.BatchStatus{store.BatchCompleted, store.BatchExpired, store.BatchCancelled} {
			id := "batch_" + string(status)
			createBatch(t, s, id)
			require.NoError(t, s.BeginBatch(t.Context(), owner, id, noon))
			require.NoError(t, s.FinalizeBatch(t.Context(), owner, id, noon))
			require.NoError(t, s.CompleteBatch(t.Context(), owner, id, endOf(status)))
			require.Error(t, s.CompleteBatch(t.Context(), owner, id, endOf(status)), "a second time tells nothing")
		}
		createBatch(t, s, "batch_failed")
		require.NoError(t, s.FailBatch(t.Context(), owner, "batch_failed", noon, noon))
		requireEvents(t, s,
			webhook.BatchCompleted+" batch_completed", webhook.BatchExpired+" batch_expired",
			webhook.BatchCancelled+" batch_cancelled", webhook.BatchFailed+" batch_failed")
	},

	"one of several has a batch, and another one after its lease": func(t *testing.T, open Open) {
		s := migrated(t, open)
		freeBatch(t, s, "b", noon.Add(time.Second))
		freeBatch(t, s, "a", noon)
		got := leaseBatches(t, s, "one", noon, 10)
		require.Equal(t, []string{"a", "b"}, batchIDs(got), "the oldest first")
		require.Equal(t, "one", got[0].Owner)
		require.Equal(t, noon.Add(lease), got[0].LeasedUntil)
		require.Equal(t, batch(t, s, "a"), got[0])

		require.Empty(t, leaseBatches(t, s, "two", noon.Add(lease-time.Microsecond), 10))
		require.Len(t, leaseBatches(t, s, "one", noon.Add(time.Second), 1), 1, "its own, renewed")
		got = leaseBatches(t, s, "two", noon.Add(lease), 10)
		require.Equal(t, []string{"b"}, batchIDs(got), "that which was not renewed")
		require.ErrorIs(t, s.BeginBatch(t.Context(), "one", "b", noon), store.ErrLeaseLost)
		require.NoError(t, s.BeginBatch(t.Context(), "two", "b", noon))
		require.Equal(t, []string{"a"}, batchIDs(leaseBatches(t, s, "one", noon.Add(lease), 10)))

		require.NoError(t, s.ReleaseBatches(t.Context(), "one"))
		require.ErrorIs(t, s.BeginBatch(t.Context(), "one", "a", noon), store.ErrLeaseLost)
		require.Equal(t, []string{"a"}, batchIDs(leaseBatches(t, s, "three", noon.Add(lease), 10)))
	},

	"of more batches than one may have its own come first": func(t *testing.T, open Open) {
		s := migrated(t, open)
		freeBatch(t, s, "young", noon.Add(time.Minute))
		require.Len(t, leaseBatches(t, s, "one", noon, 1), 1)
		freeBatch(t, s, "old", noon)
		freeBatch(t, s, "older", noon.Add(-time.Minute))
		require.Equal(t, []string{"young"}, batchIDs(leaseBatches(t, s, "one", noon, 1)))
		require.Equal(t, []string{"older", "young"}, batchIDs(leaseBatches(t, s, "one", noon, 2)))
		require.Empty(t, leaseBatches(t, s, "two", noon, 0))
		require.Empty(t, leaseBatches(t, s, "two", noon, -1))
		_, err := s.LeaseBatches(t.Context(), "", noon, lease, 1)
		require.ErrorIs(t, err, store.ErrInvalid, "nobody is no owner")
	},

	"who is not the owner changes nothing": func(t *testing.T, open Open) {
		s := migrated(t, open)
		want := createBatch(t, s, "batch_1")
		freeBatch(t, s, "free", noon)
		for _, who := range [][2]string{{"stranger", "batch_1"}, {"", "batch_1"}, {"", "free"}, {owner, "free"}, {owner, "nobody's"}} {
			for name, call := range ownerCalls(t, s, who[0], who[1]) {
				require.ErrorIs(t, call(), store.ErrLeaseLost, "%s by %q of %s", name, who[0], who[1])
			}
		}
		require.Equal(t, want, batch(t, s, "batch_1"))
	},

	"a rate is remembered": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createBatch(t, s, "batch_1")
		require.NoError(t, s.NoteRate(t.Context(), owner, "batch_1", 12.25))
		require.InDelta(t, 12.25, batch(t, s, "batch_1").Rate, 0)
		for _, wrong := range []float64{-1, math.NaN(), math.Inf(1)} {
			require.ErrorIs(t, s.NoteRate(t.Context(), owner, "batch_1", wrong), store.ErrInvalid)
		}
	},
}

// ownerCalls has every method that only the owner may call.
func ownerCalls(t *testing.T, s store.Store, who, id string) map[string]func() error {
	ctx := t.Context()
	return map[string]func() error{
		"AddLines":      func() error { return s.AddLines(ctx, who, id, newLines(id, 1, 1), 1, nil) },
		"BeginBatch":    func() error { return s.BeginBatch(ctx, who, id, noon) },
		"FailBatch":     func() error { return s.FailBatch(ctx, who, id, noon, noon) },
		"FinalizeBatch": func() error { return s.FinalizeBatch(ctx, who, id, noon) },
		"CompleteBatch": func() error { return s.CompleteBatch(ctx, who, id, endOf(store.BatchCompleted)) },
		"NoteRate":      func() error { return s.NoteRate(ctx, who, id, 1) },
	}
}

func batchPages(t *testing.T, open Open) {
	s := migrated(t, open)
	for i := range 7 {
		freeBatch(t, s, fmt.Sprintf("batch_%d", i), noon.Add(time.Duration(i/2)*time.Microsecond))
	}
	stranger := newBatch("theirs")
	stranger.Tenant = "other"
	require.NoError(t, s.CreateBatch(t.Context(), stranger))
	filter, got := store.BatchFilter{Tenant: "acme", Limit: 3}, []string{}
	for range 3 {
		page, err := s.ListBatches(t.Context(), filter)
		require.NoError(t, err)
		got = append(got, batchIDs(page)...)
		require.Equal(t, batch(t, s, page[0].ID), page[0])
		filter.After = store.BatchCursor(page[len(page)-1])
	}
	require.Equal(t, []string{"batch_6", "batch_5", "batch_4", "batch_3", "batch_2", "batch_1", "batch_0"}, got)
	page, err := s.ListBatches(t.Context(), filter)
	require.NoError(t, err)
	require.Empty(t, page)
	_, err = s.ListBatches(t.Context(), store.BatchFilter{})
	require.ErrorIs(t, err, store.ErrInvalid)
}

func statuses(t *testing.T, open Open) {
	s := migrated(t, open)
	want := createBatch(t, s, "batch_1")
	require.NoError(t, s.BeginBatch(t.Context(), owner, "batch_1", noon.Add(time.Second)))
	want.Status, want.InProgressAt = store.BatchInProgress, noon.Add(time.Second)
	require.Equal(t, want, batch(t, s, "batch_1"))
	require.NoError(t, s.FinalizeBatch(t.Context(), owner, "batch_1", noon.Add(2*time.Second)))
	want.Status, want.FinalizingAt = store.BatchFinalizing, noon.Add(2*time.Second)
	require.Equal(t, want, batch(t, s, "batch_1"))
	end := endOf(store.BatchExpired)
	require.NoError(t, s.CompleteBatch(t.Context(), owner, "batch_1", end))
	want.Status, want.ExpiredAt, want.PurgeAt = store.BatchExpired, end.At, end.Purge
	want.OutputFile, want.ErrorFile = end.OutputFile.ID, end.ErrorFile.ID
	want.Owner, want.LeasedUntil = "", time.Time{}
	require.Equal(t, want, batch(t, s, "batch_1"))

	want = createBatch(t, s, "batch_2")
	require.NoError(t, s.FailBatch(t.Context(), owner, "batch_2", noon.Add(time.Second), noon.Add(time.Hour)))
	want.Status, want.FailedAt, want.PurgeAt = store.BatchFailed, noon.Add(time.Second), noon.Add(time.Hour)
	want.Owner, want.LeasedUntil = "", time.Time{}
	require.Equal(t, want, batch(t, s, "batch_2"))
	require.Empty(t, leaseBatches(t, s, owner, noon.Add(time.Hour), 10), "nobody works on what has ended")
}

// conflicts tries everything on a batch in every status.
func conflicts(t *testing.T, open Open) {
	s := migrated(t, open)
	fits := map[store.BatchStatus][]string{
		store.BatchValidating: {"AddLines", "BeginBatch", "FailBatch"},
		store.BatchInProgress: {"FinalizeBatch"},
		store.BatchCancelling: {"FinalizeBatch"},
		store.BatchFinalizing: {"CompleteBatch"},
		store.BatchCompleted:  nil,
		store.BatchFailed:     nil,
	}
	for status, calls := range fits {
		id := "batch_" + string(status)
		createBatch(t, s, id)
		reach(t, s, id, status)
		want := batch(t, s, id)
		refused := ownerCalls(t, s, owner, id)
		delete(refused, "NoteRate")
		for _, name := range calls {
			require.Contains(t, refused, name)
			delete(refused, name)
		}
		for name, call := range refused {
			err := call()
			if status.Finished() {
				require.ErrorIs(t, err, store.ErrLeaseLost, "%s when %s", name, status)
			} else {
				require.ErrorIs(t, err, store.ErrConflict, "%s when %s", name, status)
			}
		}
		if !status.Cancellable() {
			got, err := s.CancelBatch(t.Context(), "acme", id, noon.Add(time.Hour))
			require.NoError(t, err)
			require.Equal(t, want, got, "to cancel it is too late")
		}
		require.Equal(t, want, batch(t, s, id))
		require.ErrorIs(t, s.CompleteBatch(t.Context(), owner, id, endOf(store.BatchFailed)), store.ErrInvalid)
		require.ErrorIs(t, s.CompleteBatch(t.Context(), owner, id, endOf(store.BatchFinalizing)), store.ErrInvalid)
	}
}

// reach brings a new batch without lines to the status.
func reach(t *testing.T, s store.Store, id string, status store.BatchStatus) {
	t.Helper()
	ctx := t.Context()
	switch status {
	case store.BatchInProgress:
		require.NoError(t, s.BeginBatch(ctx, owner, id, noon))
	case store.BatchCancelling:
		_, err := s.CancelBatch(ctx, "acme", id, noon)
		require.NoError(t, err)
	case store.BatchFinalizing:
		reach(t, s, id, store.BatchInProgress)
		require.NoError(t, s.FinalizeBatch(ctx, owner, id, noon))
	case store.BatchCompleted:
		reach(t, s, id, store.BatchFinalizing)
		require.NoError(t, s.CompleteBatch(ctx, owner, id, endOf(store.BatchCompleted)))
	case store.BatchFailed:
		require.NoError(t, s.FailBatch(ctx, owner, id, noon, noon))
	}
}
