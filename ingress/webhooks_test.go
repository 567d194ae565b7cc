package ingress

import (
	"context"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/webhook"
	"sluice/store"
	"sluice/store/sqlite"
)

// hookRig is the deliveries of one ingress, on a real database, with a receiver in its
// script.
type hookRig struct {
	t     *testing.T
	db    store.Store
	hooks *hooks

	mu     sync.Mutex
	sent   []sentHook
	script func(webhook.Message) webhook.Result
}

type sentHook struct {
	at time.Time
	m  webhook.Message
}

func (r *hookRig) send(_ context.Context, m webhook.Message) webhook.Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, sentHook{time.Now(), m})
	result := r.script(m)
	result.At = time.Now()
	return result
}

func (r *hookRig) times() (since []time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sent {
		since = append(since, s.at.Sub(r.sent[0].at))
	}
	return since
}

func answers(status int) func(webhook.Message) webhook.Result {
	return func(webhook.Message) webhook.Result { return webhook.Result{Status: status} }
}

func newHookRig(t *testing.T, script func(webhook.Message) webhook.Result) *hookRig {
	t.Helper()
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "sluice.db"))
	require.NoError(t, err)
	require.NoError(t, db.Migrate(t.Context()))
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	r := &hookRig{t: t, db: db, script: script}
	r.hooks = r.another()
	return r
}

// another is the deliveries of one more ingress on the same database.
func (r *hookRig) another() *hooks {
	h := newHooks(WebhookOptions{Store: r.db, Timeout: 15 * time.Second, MaxEndpoints: 2, Keep: time.Hour}, NewMetrics(prometheus.NewRegistry()), discard())
	h.send = r.send
	return h
}

// start runs deliveries until the test, or its bubble, ends.
func (r *hookRig) start(h *hooks) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var loop sync.WaitGroup
	loop.Go(func() { h.run(ctx) })
	return func() {
		cancel()
		loop.Wait()
	}
}

func (r *hookRig) endpoint() store.Webhook {
	r.t.Helper()
	w, err := r.db.CreateWebhook(r.t.Context(), store.Webhook{ID: webhook.NewEndpointID(), Tenant: "acme", URL: "https://hooks.example.com/in"}, webhook.NewSecret(), 100)
	require.NoError(r.t, err)
	return w
}

func (r *hookRig) event() store.Event {
	r.t.Helper()
	e := store.NewEvent("acme", webhook.JobCompleted, "job_1")
	_, err := r.db.AppendEvent(r.t.Context(), e)
	require.NoError(r.t, err)
	return e
}

func (r *hookRig) report(eventID string) store.DeliveryReport {
	r.t.Helper()
	reports, err := r.db.Deliveries(r.t.Context(), store.DeliveryFilter{EventID: eventID})
	require.NoError(r.t, err)
	require.Len(r.t, reports, 1)
	return reports[0]
}

// The specification's schedule, to its end, in the time of a bubble.
func TestDeliveriesFollowTheSchedule(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newHookRig(t, answers(http.StatusServiceUnavailable))
		r.hooks.poll = 30 * time.Second // five days of looks cost time, though none passes
		w, e := r.endpoint(), r.event()
		stop := r.start(r.hooks)
		time.Sleep(5 * 24 * time.Hour)
		stop()
		waits := []time.Duration{
			5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
		}
		at := r.times()
		require.Len(t, at, len(waits)+1, "then it is given up")
		for i, want := range waits {
			got := at[i+1] - at[i]
			require.GreaterOrEqual(t, got, want, i)
			require.LessOrEqual(t, got, want+want/5+r.hooks.poll, i)
		}
		for _, s := range r.sent {
			require.Equal(t, e.ID, s.m.EventID, "one id")
			require.Equal(t, r.sent[0].m.Body, s.m.Body, "one body")
		}
		report := r.report(e.ID)
		require.Equal(t, store.DeliveryFailed, report.State)
		require.Len(t, report.Log, len(waits)+1)

		// A first failure after five days of nothing else disables the endpoint.
		time.Sleep(time.Hour)
		r.event()
		stop = r.start(r.hooks)
		time.Sleep(time.Second)
		stop()
		got, err := r.db.Webhook(t.Context(), w.ID)
		require.NoError(t, err)
		require.Equal(t, store.DisabledFailing, got.DisabledFor)
		r.event()
		stop = r.start(r.hooks)
		time.Sleep(time.Hour)
		stop()
		require.Len(t, r.times(), len(waits)+2, "nothing is sent to it any more")
	})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newHookRig(t, func(webhook.Message) webhook.Result { return webhook.Result{Status: 429, RetryAfter: 3 * time.Hour} })
		r.hooks.poll = 30 * time.Second
		r.endpoint()
		r.event()
		stop := r.start(r.hooks)
		time.Sleep(time.Minute)
		r.event() // this one waits, too: it is the endpoint that asked for it
		time.Sleep(2 * time.Hour)
		require.Len(t, r.times(), 1)
		time.Sleep(time.Hour)
		stop()
		require.GreaterOrEqual(t, len(r.times()), 2)
		require.GreaterOrEqual(t, r.times()[1], 3*time.Hour)
	})
}

func TestGoneDisablesAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newHookRig(t, answers(http.StatusGone))
		r.hooks.poll = 30 * time.Second
		w, e := r.endpoint(), r.event()
		stop := r.start(r.hooks)
		time.Sleep(time.Hour)
		stop()
		require.Len(t, r.times(), 1)
		got, err := r.db.Webhook(t.Context(), w.ID)
		require.NoError(t, err)
		require.Equal(t, store.DisabledGone, got.DisabledFor)
		require.Equal(t, store.DeliveryFailed, r.report(e.ID).State)
	})
}

// What a killed ingress had in its hands is another one's when its lease ends.
func TestALostDeliveryIsMadeByAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newHookRig(t, answers(http.StatusOK))
		r.endpoint()
		e := r.event()
		lost, err := r.db.LeaseDeliveries(t.Context(), store.LeaseRequest{Lease: "killed", For: 30 * time.Second, Most: 1, PerLane: 1})
		require.NoError(t, err)
		require.Len(t, lost, 1)
		stop := r.start(r.hooks)
		time.Sleep(29 * time.Second)
		require.Empty(t, r.times())
		time.Sleep(3 * time.Second)
		stop()
		require.Len(t, r.times(), 1)
		require.Equal(t, e.ID, r.sent[0].m.EventID)
		require.Equal(t, store.DeliveryDelivered, r.report(e.ID).State)
	})
}

// Two ingresses deliver each event once, and one endpoint that does not answer holds up
// nobody.
func TestTwoIngressesDeliverEachEventOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var slow store.Webhook
		r := newHookRig(t, nil)
		slow = r.endpoint()
		hang := make(chan struct{})
		another := r.another()
		for _, h := range []*hooks{r.hooks, another} {
			h.send = func(ctx context.Context, m webhook.Message) webhook.Result {
				if m.URL == "https://slow.example.com/" {
					<-hang
				}
				return r.send(ctx, m)
			}
		}
		r.script = answers(http.StatusOK)
		require.NoError(t, r.db.DeleteWebhook(t.Context(), slow.ID))
		_, err := r.db.CreateWebhook(t.Context(), store.Webhook{ID: slow.ID, Tenant: "acme", URL: "https://slow.example.com/"}, webhook.NewSecret(), 100)
		require.NoError(t, err)
		r.endpoint()
		const events = 150 // more than both of them can have in hand
		for range events {
			r.event()
		}
		stopA, stopB := r.start(r.hooks), r.start(another)
		time.Sleep(10 * time.Second)
		require.Len(t, r.times(), events, "all of the quick one's")
		close(hang)
		time.Sleep(30 * time.Second)
		stopA()
		stopB()
		seen := make(map[string]int)
		for _, s := range r.sent {
			seen[s.m.EventID+s.m.URL]++
		}
		require.Len(t, seen, 2*events)
		for _, n := range seen {
			require.Equal(t, 1, n)
		}
	})
}

// What a single job names is signed with its tenant's own secret.
func TestAJobsOwnTargetIsSignedForItsTenant(t *testing.T) {
	t.Parallel()
	r := newHookRig(t, answers(http.StatusOK))
	e := store.NewEvent("acme", webhook.JobCompleted, "job_1")
	e.Target = "https://jobs.example.com/done"
	_, err := r.db.AppendEvent(t.Context(), e)
	require.NoError(t, err)
	stop := r.start(r.hooks)
	require.Eventually(t, func() bool { return r.report(e.ID).State == store.DeliveryDelivered }, soon, 5*time.Millisecond)
	stop()
	secret, err := r.db.TenantSecret(t.Context(), "acme", webhook.NewSecret())
	require.NoError(t, err)
	require.Equal(t, []webhook.Secret{secret}, r.sent[0].m.Secrets)
	require.Equal(t, e.Target, r.sent[0].m.URL)
}

func TestOldEventsAreRemoved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newHookRig(t, answers(http.StatusOK))
		r.hooks.poll = 30 * time.Second
		r.endpoint()
		r.event()
		ctx, cancel := context.WithCancel(t.Context())
		var loops sync.WaitGroup
		loops.Go(func() { r.hooks.run(ctx) })
		loops.Go(func() { r.hooks.prune(ctx) })
		left := func() int {
			reports, err := r.db.Deliveries(t.Context(), store.DeliveryFilter{})
			require.NoError(t, err)
			return len(reports)
		}
		time.Sleep(59 * time.Minute)
		require.Equal(t, 1, left())
		time.Sleep(3 * time.Minute)
		require.Zero(t, left())
		cancel()
		loops.Wait()
	})
}
