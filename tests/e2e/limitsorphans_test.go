package e2e_test

import (
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/apikey"
	"sluice/internal/limits"
	"sluice/internal/testkit"
	"sluice/store"
)

// A call goes on without its ingress, and others get its place when it has ended: neither
// when the ingress is gone, nor when that is known.
func TestACallKeepsItsPlaceWithoutItsIngress(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*ingress){
		"killed": func(in *ingress) { in.kill() },
		"stopped": func(in *ingress) {
			in.signal(syscall.SIGTERM)
			require.Zero(in.t, in.wait())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{server: impatient})
			leaving, other := c.ingress(), c.ingress()
			c.worker(leaving, 1)
			secret, gate := apikey.Mint(), make(chan struct{})
			require.NoError(t, c.db.CreateKey(t.Context(), store.Key{
				ID: "key_one", Name: "one", Tenant: "default", Display: apikey.Display(secret), Hash: apikey.Hash(secret), Limits: &limits.Limits{Concurrent: 1},
			}, store.Change{Actor: "test"}))
			c.upstream.Handle(func(call *testkit.Call) {
				call.Delta("begun")
				if call.N > 1 || call.Wait(gate) {
					call.Finish("stop")
					call.Usage(7, 1)
					call.Done()
				}
			})
			status := func() int {
				resp, err := other.as(secret).post(t.Context(), chatBody(clusterModel, true, "another"), nil)
				require.NoError(t, err)
				return drop(resp)
			}
			s := leaving.as(secret).openStream(t, clusterModel, "goes on", nil)
			s.until("begun")
			end(leaving)
			for gone := time.Now(); time.Since(gone) < limitLease+5*time.Second; pause(200 * time.Millisecond) {
				require.Equal(t, http.StatusTooManyRequests, status(), "%s after the end of its ingress", time.Since(gone))
			}
			close(gate)
			ended := time.Now()
			require.Eventually(t, func() bool { return status() == http.StatusOK }, patience, pollEvery)
			t.Logf("free %s after the call's end", time.Since(ended).Round(time.Millisecond))
			require.Equal(t, 2, c.upstream.Count())
		})
	}
}
