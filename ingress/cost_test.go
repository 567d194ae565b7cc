package ingress

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/pricing"
	"sluice/internal/queue"
	"sluice/store"
)

// ours are prices of the provider "acme": of what it says it used, and of what was asked
// for, and one that began lately.
func ours(o *Options) {
	o.Settings.Prices = pricing.New(map[string][]pricing.Price{"acme": {
		{Models: []string{"m-served"}, Input: 1_000_000_000, Output: 10_000_000_000},
		{Models: []string{"m-served"}, Input: 7_000_000_000, Output: 7_000_000_000, From: time.Now().Add(-time.Hour)},
	}}, nil)
}

// at7 is what tokens of "m-served" cost now, one as much as another.
func at7(tokens int64) inference.Cost { return inference.Cost(tokens) * 7000 }

// Every way on which a row with tokens comes into the database finds its cost there.
func TestEveryRowIsPriced(t *testing.T) {
	t.Parallel()
	r := setupJobs(t, ours)
	r.work()

	call := r.chat(`{"model":"m","messages":[{"role":"user","content":"hi"}]}`)
	plain := r.take()
	plain.end(&queue.End{Body: []byte(`{"id":"x"}`), Model: "m-served", Usage: inference.Usage{PromptTokens: 30, CompletionTokens: 12, Known: true}})
	call.whole()
	row := r.row(plain.job.ID)
	require.Equal(t, at7(42), row.Cost)
	require.True(t, row.Priced)

	id := r.later(`{"model":"m","messages":[{"role":"user","content":"hi"}]}`)
	r.take().done(`{"id":"y"}`)
	require.Eventually(t, func() bool { return r.show(id, "").Status == "completed" }, soon, 5*time.Millisecond)
	rows, err := r.db.Usage(t.Context(), store.UsageFilter{JobID: id[len(store.JobPrefix):]})
	require.NoError(t, err)
	require.Equal(t, at7(7), rows[0].Cost)
	require.True(t, rows[0].Priced)

	// A worker wrote this one, for an ingress that is lost; its request is older than the
	// price of today.
	lost := inference.Record{
		JobID: "lost-1", Provider: "acme", ModelServed: "m-served", Outcome: inference.OutcomeAbandoned, CreatedAt: time.Now().Add(-2 * time.Hour),
		Usage: inference.Usage{PromptTokens: 1, CompletionTokens: 1, Known: true},
	}
	estimated, unknown, unpriced, cached := lost, lost, lost, lost
	estimated.JobID, estimated.Usage.Estimated = "lost-2", true
	unknown.JobID, unknown.Usage = "lost-3", inference.Usage{}
	unpriced.JobID, unpriced.ModelServed = "lost-4", "other"
	cached.JobID, cached.Cache = "lost-5", inference.CacheHit
	require.NoError(t, r.conn.AppendRecords(t.Context(), []inference.Record{lost, estimated, unknown, unpriced, cached}))
	for id, want := range map[string]struct {
		cost   inference.Cost
		priced bool
	}{
		"lost-1": {11_000, true}, "lost-2": {11_000, true}, "lost-3": {0, false}, "lost-4": {0, false}, "lost-5": {0, true},
	} {
		row := r.row(id)
		require.Equal(t, want.cost, row.Cost, id)
		require.Equal(t, want.priced, row.Priced, id)
	}

	_, metrics := r.get("/metrics").whole()
	require.Contains(t, metrics, `sluice_cost_total{provider="acme"} 0.000343`+"\n", "of the requests that this ingress answered")
	require.NotContains(t, metrics, "sluice_unpriced_total{")
}

// A request goes by the prices that it began with, however the file changes meanwhile.
func TestARequestKeepsItsPrices(t *testing.T) {
	t.Parallel()
	r := setup(t, ours)
	r.work()
	call := r.chat(plainRequest)
	held := r.take()
	next := r.settingsWith()
	next.Prices = pricing.New(map[string][]pricing.Price{"acme": {{Models: []string{"m-served"}, Input: 1, Output: 1}}}, nil)
	r.ingress.Apply(next)
	held.end(&queue.End{Body: []byte(`{"id":"x"}`), Model: "m-served", Usage: inference.Usage{PromptTokens: 30, CompletionTokens: 12, Known: true}})
	call.whole()
	require.Equal(t, at7(42), r.row(held.job.ID).Cost)
}

func TestALineOfABatchIsPriced(t *testing.T) {
	t.Parallel()
	db := openJobs(t)
	r := &batchRig{&fileRig{setup(t, ours, withJobs(db), func(o *Options) {
		o.Files = FileOptions{Rows: db, MaxBytes: 2 << 20, MaxBatchBytes: 1 << 20, MaxTransfers: 4}
		o.Batches = BatchOptions{Store: db, MaxLines: 100, MaxLineBytes: 64 << 10, Window: 50, Retention: time.Hour}
	}), db}, db}
	(&jobRig{r.rig, db}).work()
	b := r.create(lines("a"), day)
	r.take().done(`{"ok":true}`)
	r.await(b.ID, "completed")
	rows, err := r.db.Usage(t.Context(), store.UsageFilter{})
	require.NoError(t, err)
	require.Len(t, rows, 1)
	require.True(t, rows[0].Priced)
	require.Equal(t, at7(rows[0].Usage.PromptTokens+rows[0].Usage.CompletionTokens), rows[0].Cost)
}

func TestTokensWithoutAPriceAreCounted(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	m.spent(&inference.Record{Provider: "p", Usage: inference.Usage{PromptTokens: 1, Known: true}})
	m.spent(&inference.Record{Provider: "p", Usage: inference.Usage{PromptTokens: 1, Known: true}, Priced: true, Cost: 2_500_000_000})
	m.spent(&inference.Record{Provider: "p"})
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	require.Contains(t, w.Body.String(), `sluice_unpriced_total{provider="p"} 1`+"\n")
	require.Contains(t, w.Body.String(), `sluice_cost_total{provider="p"} 2.5`+"\n")
}
