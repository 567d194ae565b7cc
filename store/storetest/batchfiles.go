package storetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/webhook"
	"sluice/store"
)

// knownOf returns which of the end's files have a row.
func knownOf(t *testing.T, s store.Store, end store.BatchEnd) []string {
	t.Helper()
	output, failed := end.FileIDs()
	known, err := s.KnownFiles(t.Context(), []string{output, failed})
	require.NoError(t, err)
	return known
}

var batchFileTests = map[string]func(*testing.T, Open){
	"a batch's files are stored with its end": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createBatch(t, s, "batch_1")
		reach(t, s, "batch_1", store.BatchFinalizing)
		end := endOf(store.BatchCompleted)
		end.OutputFile.ExpiresAt = fileTime.Add(time.Hour)
		require.NoError(t, s.CompleteBatch(t.Context(), owner, "batch_1", end))
		for id, want := range map[string]*store.File{batch(t, s, "batch_1").OutputFile: end.OutputFile, batch(t, s, "batch_1").ErrorFile: end.ErrorFile} {
			got, err := s.File(t.Context(), "acme", id, fileTime)
			require.NoError(t, err)
			require.Equal(t, *want, got)
		}
		late := endOf(store.BatchCompleted)
		require.ErrorIs(t, s.CompleteBatch(t.Context(), owner, "batch_1", late), store.ErrLeaseLost)
		require.Empty(t, knownOf(t, s, late), "the end was stored with other files")
	},

	"a batch without lines of a kind has no file of them": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createBatch(t, s, "batch_1")
		reach(t, s, "batch_1", store.BatchFinalizing)
		end := endOf(store.BatchCompleted)
		end.ErrorFile = nil
		require.NoError(t, s.CompleteBatch(t.Context(), owner, "batch_1", end))
		require.Empty(t, batch(t, s, "batch_1").ErrorFile)
		require.Equal(t, end.OutputFile.ID, batch(t, s, "batch_1").OutputFile)
	},

	"an end that is refused stores no file": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createBatch(t, s, "batch_1")
		reach(t, s, "batch_1", store.BatchFinalizing)
		want := batch(t, s, "batch_1")
		taken := newFile("file-taken")
		createFiles(t, s, taken)
		for name, c := range map[string]struct {
			who    string
			change func(*store.BatchEnd)
			err    error
		}{
			"not the owner":         {"stranger", func(*store.BatchEnd) {}, store.ErrLeaseLost},
			"a file that is there":  {owner, func(e *store.BatchEnd) { e.ErrorFile = &taken }, store.ErrDuplicate},
			"another tenant's file": {owner, func(e *store.BatchEnd) { e.ErrorFile.Tenant = "other" }, store.ErrInvalid},
			"no file":               {owner, func(e *store.BatchEnd) { e.ErrorFile.Digest = "" }, store.ErrInvalid},
		} {
			end := endOf(store.BatchCompleted)
			c.change(&end)
			require.ErrorIs(t, s.CompleteBatch(t.Context(), c.who, "batch_1", end), c.err, name)
			require.NotContains(t, knownOf(t, s, end), end.OutputFile.ID, name)
			require.Equal(t, want, batch(t, s, "batch_1"), name)
		}
	},

	"a batch that was cancelling ends as cancelled, whatever its owner knows": func(t *testing.T, open Open) {
		s := migrated(t, open)
		addWebhook(t, s, newWebhook())
		for _, status := range []store.BatchStatus{store.BatchCompleted, store.BatchExpired} {
			id := "batch_" + string(status)
			createBatch(t, s, id)
			require.NoError(t, s.BeginBatch(t.Context(), owner, id, noon))
			reach(t, s, id, store.BatchCancelling)
			require.NoError(t, s.FinalizeBatch(t.Context(), owner, id, noon))
			require.NoError(t, s.CompleteBatch(t.Context(), owner, id, endOf(status)))
			b := batch(t, s, id)
			require.Equal(t, store.BatchCancelled, b.Status)
			require.Equal(t, endOf("").At, b.CancelledAt)
			require.Zero(t, b.CompletedAt)
			require.Zero(t, b.ExpiredAt)
		}
		requireEvents(t, s, webhook.BatchCancelled+" batch_completed", webhook.BatchCancelled+" batch_expired")
	},
}

var voidTests = map[string]func(*testing.T, Open){
	"void leases keep nobody from anything": func(t *testing.T, open Open) {
		s := migrated(t, open)
		running(t, s, "batch_1", 3)
		createBatch(t, s, "ended")
		reach(t, s, "ended", store.BatchCompleted)
		createJobs(t, s, jobAt("fresh", "acme", noon), jobAt("sent", "acme", noon))
		dispatch(t, s, "sent", 0, noon)
		require.Len(t, leaseAt(t, s, noon, 10), 1)
		require.Len(t, leaseLines(t, s, "batch_1", noon, 2), 2)
		send(t, s, "batch_1-0002")
		soon := noon.Add(time.Second)
		require.Empty(t, leaseBatches(t, s, "other", soon, 10))
		require.Empty(t, leaseAt(t, s, soon, 10))

		require.NoError(t, s.VoidLeases(t.Context(), soon))
		require.Equal(t, []string{"batch_1"}, batchIDs(leaseBatches(t, s, "other", soon, 10)))
		require.ErrorIs(t, s.NoteRate(t.Context(), owner, "batch_1", 1), store.ErrLeaseLost)
		jobs := leaseAt(t, s, soon, 10)
		require.Len(t, jobs, 1)
		require.Equal(t, "fresh", jobs[0].ID)
		require.Equal(t, store.NextEpoch(0), jobs[0].Epoch, "it may have been published")
		lines := leaseLines(t, s, "batch_1", soon, 10)
		require.Equal(t, []int{1, 3}, lineNumbers(lines), "one has its message")
		require.Equal(t, []int{store.NextEpoch(0), 0}, []int{lines[0].Epoch, lines[1].Epoch})
	},

	"leases that have run out stay as they are": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("old", "acme", noon))
		require.Len(t, leaseAt(t, s, noon, 10), 1)
		over := noon.Add(2 * lease)
		want := job(t, s, "old")
		require.NoError(t, s.VoidLeases(t.Context(), over))
		require.Equal(t, want, job(t, s, "old"))
		require.Len(t, leaseAt(t, s, over, 10), 1)
	},
}
