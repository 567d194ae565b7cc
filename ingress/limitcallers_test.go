package ingress

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/token"
	"sluice/store"
)

// withTokens has the ingress take tokens, whose claim says what their callers may take.
func withTokens(t *testing.T) func(*Options) {
	t.Helper()
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := new(loginPage).RoundTrip(r)
		if err == nil {
			_, err = io.Copy(w, resp.Body)
		}
		if err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(keys.Close)
	return func(o *Options) {
		issuer := loginIssuer()
		issuer.KeysURL = keys.URL
		o.Settings.Tokens = []token.Issuer{issuer}
	}
}

// limitedTo is a header with the token of a caller who has limits of its own.
func limitedTo(own map[string]any) []string {
	return []string{"Authorization", "Bearer " + jwt(map[string]any{"limits": own})}
}

func TestATokensLimitsHoldForItsJobs(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupJobs(t, withLimits(c, limits.Limits{}), withTokens(t))
	id := r.later(capped, limitedTo(map[string]any{"tokens_per_minute": 20})...)
	job := r.show(id, "?wait=10s")
	require.Equal(t, "failed", job.Status)
	require.Contains(t, job.Error.Message, "The limit tokens_per_minute of this caller is 20 tokens in a minute")
	c.quiet()
}

func TestWhatATokensJobTookIsCountedWhereverItEnds(t *testing.T) {
	t.Parallel()
	own := limitedTo(map[string]any{"tokens_per_minute": 1000})
	t.Run("here", func(t *testing.T) {
		t.Parallel()
		c := newCounters(t)
		r := setupJobs(t, withLimits(c, limits.Limits{}), withTokens(t))
		r.work()
		r.later(capped, own...)
		job := r.take()
		r.reserved(r.ingress.stored.limits)
		job.done(`{"id":"x"}`)
		c.quiet("settle 7")
	})
	t.Run("elsewhere", func(t *testing.T) {
		t.Parallel()
		c := newCounters(t)
		r := setupJobs(t, withLimits(c, limits.Limits{}), withTokens(t))
		r.work()
		e := r.elsewhere(r.later(capped, own...))
		e.requeue(false)
		e.finish()
		require.NoError(t, r.ingress.stored.limits.sweepHolds(t.Context()))
		c.quiet(fmt.Sprintf("charge key:%s 7", e.job.job.KeyID), "release")
	})
}

func TestATokensLimitsHoldForItsBatches(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupBatches(t, withLimits(c, limits.Limits{}), withTokens(t))
	b, _ := r.read(r.post("/v1/batches", fmt.Sprintf(`{"input_file_id":%q,"endpoint":"/v1/chat/completions"%s}`, r.input(strings.ReplaceAll(lines("a", "b"), plainRequest, capped)), day),
		limitedTo(map[string]any{"tokens_per_minute": 20})...))
	b, _ = r.await(b.ID, string(store.BatchCompleted))
	require.Equal(t, 2, b.Counts.Failed)
	_, text := r.get("/v1/files/" + *b.ErrorFile + "/content").whole()
	require.Contains(t, text, string(inference.CodeRateLimited))
	require.Contains(t, text, "The limit tokens_per_minute of this caller is 20 tokens in a minute")
	c.quiet()
}
