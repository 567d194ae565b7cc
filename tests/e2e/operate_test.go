package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

// operated is a cluster whose ingresses serve operators.
func operated(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t, clusterOptions{})
	f, err := os.OpenFile(c.file("ingress.yaml"), os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	_, err = fmt.Fprintf(f, "admin: {address: 127.0.0.1:0, token: %s}\n", hookToken)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return c
}

// operate runs a command of an operator's against the ingress.
func (i *ingress) operate(line string) (stdout string) {
	i.t.Helper()
	code, stdout, stderr := execute(i.t, command{
		env:  []string{"SLUICE_ADMIN_ADDRESS=" + operatorsAddress(i.process), "SLUICE_ADMIN_TOKEN=" + hookToken},
		args: strings.Fields(line),
	})
	require.Zero(i.t, code, "%s: %s", line, stderr)
	return stdout
}

// shown is the provider as operators see it.
type shown struct {
	Name, State, Reason string
	Queue               []struct {
		Lane             string
		Waiting, Running int
	}
}

func (i *ingress) shown() shown {
	i.t.Helper()
	var list struct{ Providers []shown }
	require.NoError(i.t, json.Unmarshal([]byte(i.operate("providers list --json")), &list))
	require.Len(i.t, list.Providers, 1)
	return list.Providers[0]
}

// waiting waits until so many requests are in the interactive lane.
func (i *ingress) waiting(n int) {
	i.t.Helper()
	i.eventually("hold the requests", func() bool {
		p := i.shown()
		return len(p.Queue) > 0 && p.Queue[0].Waiting == n
	})
}

// A pause under load: who calls waits, also while an ingress is killed and a worker comes
// anew, and all are answered once it is over.
func TestAPauseOutlivesEveryProcess(t *testing.T) {
	t.Parallel()
	const clients = 8
	c := operated(t)
	doomed, in := c.ingress(), c.ingress()
	c.upstream.Handle(echo)
	first := c.worker(in, 1)
	l := startLoad(t, "load", clients, in.client)
	l.more(t, 40)

	require.Equal(t, "Provider up is paused.\n", doomed.operate("providers pause up --reason maintenance"))
	in.waiting(clients)
	calls := c.upstream.Count()
	doomed.kill()
	again := c.ingress()
	first.kill()
	in.eventually("miss the worker", func() bool { return in.workers() == 0 })
	c.worker(in, 1)
	require.Equal(t, []string{"paused", "maintenance"}, []string{again.shown().State, again.shown().Reason})
	untilHeldKnown()
	in.waiting(clients)
	require.Equal(t, calls, c.upstream.Count(), "a worker that starts in a pause takes nothing")

	require.Equal(t, "Provider up is active.\n", again.operate("providers resume up"))
	l.more(t, 40)
	requests := l.end(t)
	rows := c.requireOneRowEach(requests)
	for id, row := range rows {
		require.Equal(t, 1, row.Attempts, id)
	}
	require.Equal(t, len(requests), c.upstream.Count())
}

func TestADrainedProviderFinishesItsQueue(t *testing.T) {
	t.Parallel()
	c := operated(t)
	in := c.ingress()
	c.upstream.Handle(echo)
	c.worker(in, 1)
	in.operate("providers pause up")
	wait := askAll(t, []*ingress{in}, 4, "queued", false)
	in.waiting(4)
	in.operate("providers drain up --for 1h")
	for _, r := range wait() {
		require.NoError(t, r.err, r.request)
	}
	resp, err := in.post(t.Context(), chatBody(clusterModel, false, "new"), nil)
	require.NoError(t, err)
	require.Equal(t, "3600", resp.Header.Get("Retry-After"))
	require.Equal(t, http.StatusServiceUnavailable, drop(resp))
	in.operate("providers resume up")
	_, err = in.ask(t.Context(), "again", requestID("again"))
	require.NoError(t, err)
	c.requireOneRowEach(append(requests(wait()), "again"))
}

func TestAPurgeTellsEveryClient(t *testing.T) {
	t.Parallel()
	c := operated(t)
	a, b := c.ingress(), c.ingress()
	c.upstream.Handle(echo)
	c.worker(a, 1)
	a.operate("providers pause up")
	b.eventually("hear of the pause", func() bool { return b.shown().State == "paused" })
	plain := askAll(t, []*ingress{a, b}, 6, "plain", false)
	streamed := askAll(t, []*ingress{a, b}, 4, "streamed", true)
	a.waiting(10)
	require.Equal(t, "10 jobs ended, 0 are with workers.\n", a.operate("queues purge up --yes"))
	for _, r := range append(plain(), streamed()...) {
		require.Error(t, r.err, r.request)
		require.Less(t, r.after, patience)
		if !r.stream {
			require.Equal(t, http.StatusServiceUnavailable, statusOf(r.err), r.request)
		}
		if api, ok := errors.AsType[*openai.Error](r.err); ok {
			require.Equal(t, string(inference.CodePurged), api.Code)
		} else {
			require.ErrorContains(t, r.err, string(inference.CodePurged))
		}
	}
	rows := c.requireOneRowEach(append(requests(plain()), requests(streamed())...))
	for id, row := range rows {
		require.Equal(t, inference.CodePurged, row.ErrorCode, id)
		require.Zero(t, row.Attempts, id)
	}
	a.operate("providers resume up")
	_, err := a.ask(t.Context(), "after")
	require.NoError(t, err)
	require.Equal(t, 1, c.upstream.Count(), "what was purged was never called")
}

func TestOperatorsResetBreakersAndSeeDeadLetters(t *testing.T) {
	t.Parallel()
	c := operated(t)
	in := c.ingress()
	c.upstream.Handle(func(call *testkit.Call) { call.Reply("well") })
	c.worker(in, 1)
	_, err := in.ask(t.Context(), "hello")
	require.NoError(t, err)
	require.Equal(t, "1 of 1 worker heard it and closed 0 breakers.\n", in.operate("providers reset-breakers up --model "+clusterModel))
	require.Contains(t, in.operate("providers list"), "up")
	require.Regexp(t, `up +active +interactive +0 +0 +- `, in.operate("queues list"))
	require.Equal(t, "ID  AT  KIND  PROVIDER  LANE  JOB  BYTES  REASON\n", in.operate("dead-letters list"))
	began := time.Now()
	require.Equal(t, "0 jobs ended, 0 are with workers.\n", in.operate("queues purge up --lane batch --yes"))
	require.Less(t, time.Since(began), patience)
}
