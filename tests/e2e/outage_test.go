package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
)

// The outage of the database, and the load during it. SLUICE_E2E_OUTAGE makes it
// longer, for instance 1m.
const (
	outageVariable = "SLUICE_E2E_OUTAGE"
	outageDefault  = 10 * time.Second
	outageEvery    = 20 * time.Millisecond // between two requests
)

func outage(t *testing.T) time.Duration {
	t.Helper()
	v := os.Getenv(outageVariable)
	if v == "" {
		return outageDefault
	}
	d, err := time.ParseDuration(v)
	require.NoError(t, err, outageVariable)
	return d
}

func TestUsageOutlivesAnOutageOfTheDatabase(t *testing.T) {
	t.Parallel()
	pg := testkit.PostgresServer(t)
	c := newCluster(t, clusterOptions{database: pg.URL()})
	a, b := c.ingress(), c.ingress()
	c.worker(a, 1)
	code, key, stderr := execute(t, command{args: []string{"keys", "create", "app", "--config", c.file("ingress.yaml")}})
	require.Zero(t, code, stderr)
	clients := []client{a.as(key), b.as(key)}
	for i, in := range clients {
		_, err := in.ask(t.Context(), "known before", requestID(fmt.Sprintf("before-%d", i)))
		require.NoError(t, err)
	}
	sent := []string{"before-0", "before-1"}

	pg.Stop()
	failures := make(chan error, 1)
	var inFlight sync.WaitGroup
	tick := time.NewTicker(outageEvery)
	defer tick.Stop()
	for until := time.Now().Add(outage(t)); time.Now().Before(until); <-tick.C {
		id := fmt.Sprintf("outage-%d", len(sent))
		from := clients[len(sent)%2]
		call := from.ask
		if len(sent)%5 == 0 {
			call = from.askStream
		}
		sent = append(sent, id)
		inFlight.Go(func() {
			if text, err := call(t.Context(), "serve on", requestID(id)); err != nil || text != "Hello there." {
				select {
				case failures <- fmt.Errorf("%s: %q, %w", id, text, err):
				default:
				}
			}
		})
	}
	inFlight.Wait()
	resp, err := a.http.Get(a.base + "/readyz")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, drop(resp), "an ingress without its database still serves")
	_, err = a.as("sk-sluice-nobody").ask(t.Context(), "who am I")
	require.Contains(t, []int{http.StatusUnauthorized, http.StatusServiceUnavailable}, statusOf(err))
	pg.Start()

	select {
	case err := <-failures:
		require.NoError(t, err, "serving continues without the database")
	default:
	}
	t.Logf("%d requests", len(sent))
	c.requireOneRowEach(sent)
}
