package ingress

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
)

// A line that an operator took out of its queue is not one of a batch that was cancelled.
func TestPurgedLinesSayWhoEndedThem(t *testing.T) {
	t.Parallel()
	r := setupBatches(t)
	b := r.create(lines("a", "b"), `,"completion_window":"24h"`)
	waiting := func() int {
		d, err := r.conn.Depths(t.Context(), "acme")
		require.NoError(t, err)
		return d[2].Waiting
	}
	require.Eventually(t, func() bool { return waiting() == 2 }, soon, time.Millisecond)
	var done adminapi.PurgedQueue
	r.operate(http.MethodPost, adminapi.QueuesPath+"/acme/purge", `{"lane":"batch"}`, &done)
	require.Equal(t, 2, done.Ended)
	b, _ = r.await(b.ID, "completed")
	require.Equal(t, struct{ Total, Completed, Failed int }{2, 0, 2}, b.Counts)
	_, body := r.get("/v1/files/" + *b.ErrorFile + "/content").whole()
	require.Equal(t, 2, strings.Count(body, `"code":"purged"`), body)
	require.NotContains(t, body, "cancelled")
}
