package storetest

import (
	"crypto/rand"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"sluice/internal/webhook"
	"sluice/store"
)

func appendEvent(t *testing.T, s store.Store, e store.Event) int {
	t.Helper()
	n, err := s.AppendEvent(t.Context(), e)
	require.NoError(t, err)
	return n
}

// leaseAll takes everything that is due, for longer than any test.
func leaseAll(t *testing.T, s store.Store) []store.Delivery {
	t.Helper()
	return leaseDeliveries(t, s, func(*store.LeaseRequest) {})
}

func leaseDeliveries(t *testing.T, s store.Store, change func(*store.LeaseRequest)) []store.Delivery {
	t.Helper()
	r := store.LeaseRequest{Lease: rand.Text(), For: time.Hour, Most: 100, PerLane: 50}
	change(&r)
	d, err := s.LeaseDeliveries(t.Context(), r)
	require.NoError(t, err)
	return d
}

// finish notes a success, or what change makes of it.
func finish(t *testing.T, s store.Store, d store.Delivery, change func(*store.Attempt)) (disabledFor string) {
	t.Helper()
	a := store.Attempt{Delivery: d, At: time.Now(), Took: 5 * time.Millisecond, Status: 200, State: store.DeliveryDelivered, DisableAfter: time.Hour}
	change(&a)
	disabledFor, err := s.FinishAttempt(t.Context(), a)
	require.NoError(t, err)
	return disabledFor
}

// fails makes an attempt a failed one that is due again at once.
func fails(a *store.Attempt) { a.Status, a.State = 500, store.DeliveryPending }

func reportOf(t *testing.T, s store.Store, eventID string) store.DeliveryReport {
	t.Helper()
	reports, err := s.Deliveries(t.Context(), store.DeliveryFilter{EventID: eventID})
	require.NoError(t, err)
	require.Len(t, reports, 1)
	return reports[0]
}

func webhookIDs(deliveries []store.Delivery) []string {
	var ids []string
	for _, d := range deliveries {
		ids = append(ids, d.WebhookID)
	}
	slices.Sort(ids)
	return ids
}

var deliveryTests = map[string]func(*testing.T, Open){
	"an event goes to whoever wants it": func(t *testing.T, open Open) {
		s := migrated(t, open)
		all, secret := addWebhook(t, s, newWebhook())
		batches, _ := addWebhook(t, s, newWebhook(webhook.BatchCompleted, webhook.BatchFailed))
		addWebhook(t, s, newWebhook(webhook.JobFailed))
		w := newWebhook()
		w.Tenant = "other"
		addWebhook(t, s, w)

		e := store.NewEvent("acme", webhook.BatchCompleted, "batch_1")
		require.Equal(t, 2, appendEvent(t, s, e))
		require.Zero(t, appendEvent(t, s, e), "it is stored already")
		require.Zero(t, appendEvent(t, s, store.NewEvent("nobody", webhook.BatchCompleted, "batch_2")))
		leased := leaseAll(t, s)
		want := []string{all.ID, batches.ID}
		slices.Sort(want)
		require.Equal(t, want, webhookIDs(leased))
		i := slices.IndexFunc(leased, func(d store.Delivery) bool { return d.WebhookID == all.ID })
		e.CreatedAt = store.CleanTime(e.CreatedAt)
		require.Equal(t, store.Delivery{Event: e, WebhookID: all.ID, URL: all.URL, Secrets: []webhook.Secret{secret}, Lease: leased[0].Lease}, leased[i])
		require.Empty(t, leaseAll(t, s), "they are in somebody's hands")
	},

	"an event can be for one endpoint, or for an address of its own": func(t *testing.T, open Open) {
		s := migrated(t, open)
		addWebhook(t, s, newWebhook())
		one, _ := addWebhook(t, s, newWebhook(webhook.JobFailed))
		only := store.NewEvent("acme", webhook.Test, "whk")
		only.Only = one.ID
		require.Equal(t, 1, appendEvent(t, s, only))
		require.Equal(t, []string{one.ID}, webhookIDs(leaseAll(t, s)))
		only.ID, only.Tenant = webhook.NewEventID(), "other"
		require.Zero(t, appendEvent(t, s, only), "another tenant's endpoint")

		e := store.NewEvent("nobody", webhook.JobCancelled, "job_1")
		e.Target = "https://Jobs.example.com/done"
		require.Equal(t, 1, appendEvent(t, s, e))
		leased := leaseAll(t, s)
		require.Len(t, leased, 1)
		require.Equal(t, e.Target, leased[0].URL)
		require.Empty(t, leased[0].WebhookID)
		require.Empty(t, leased[0].Secrets, "the tenant has none yet")
	},

	"an event that cannot be stored is refused": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for _, change := range []func(*store.Event){
			func(e *store.Event) { e.ID = "" },
			func(e *store.Event) { e.Tenant = "\x00" },
			func(e *store.Event) { e.ObjectID = "" },
			func(e *store.Event) { e.Type = "job.done" },
			func(e *store.Event) { e.Target = "example.com" },
		} {
			e := store.NewEvent("acme", webhook.JobFailed, "job_1")
			change(&e)
			_, err := s.AppendEvent(t.Context(), e)
			require.ErrorIs(t, err, store.ErrInvalid)
		}
		for _, r := range []store.LeaseRequest{{}, {Lease: "x", For: 1, Most: 1}, {Lease: "x", For: 1, PerLane: 1}, {Lease: "x", Most: 1, PerLane: 1}, {For: 1, Most: 1, PerLane: 1}} {
			_, err := s.LeaseDeliveries(t.Context(), r)
			require.ErrorIs(t, err, store.ErrInvalid)
		}
	},

	"a lease that runs out frees its delivery": func(t *testing.T, open Open) {
		s := migrated(t, open)
		addWebhook(t, s, newWebhook())
		e := store.NewEvent("acme", webhook.JobFailed, "job_1")
		appendEvent(t, s, e)
		lost := leaseDeliveries(t, s, func(r *store.LeaseRequest) { r.For = 300 * time.Millisecond })
		require.Len(t, lost, 1)
		require.Empty(t, leaseAll(t, s))
		var again []store.Delivery
		require.Eventually(t, func() bool { again = leaseAll(t, s); return len(again) == 1 }, 10*time.Second, 10*time.Millisecond)
		require.Equal(t, e.ID, again[0].Event.ID, "the id stays")
		_, err := s.FinishAttempt(t.Context(), store.Attempt{Delivery: lost[0], At: time.Now(), Status: 500, State: store.DeliveryFailed})
		require.ErrorIs(t, err, store.ErrLeaseLost, "the late one has no say")
		finish(t, s, again[0], func(*store.Attempt) {})
		require.Equal(t, store.DeliveryDelivered, reportOf(t, s, e.ID).State)
		_, err = s.FinishAttempt(t.Context(), store.Attempt{Delivery: again[0], At: time.Now(), Status: 200, State: store.DeliveryDelivered})
		require.ErrorIs(t, err, store.ErrLeaseLost, "once")
	},

	"what fails waits and comes again": func(t *testing.T, open Open) {
		s := migrated(t, open)
		w, _ := addWebhook(t, s, newWebhook())
		e := store.NewEvent("acme", webhook.JobFailed, "job_1")
		appendEvent(t, s, e)
		first := leaseAll(t, s)[0]
		require.Zero(t, first.Failed)
		at := time.Date(2025, 3, 30, 1, 59, 59, 123456789, time.FixedZone("east", 3600))
		require.Empty(t, finish(t, s, first, func(a *store.Attempt) { fails(a); a.At = at }))
		second := leaseAll(t, s)[0]
		require.Equal(t, 1, second.Failed)
		finish(t, s, second, func(a *store.Attempt) { fails(a); a.Status, a.Failure, a.Wait = 0, webhook.FailedTimeout, time.Hour })
		require.Empty(t, leaseAll(t, s), "it is not due")

		r := reportOf(t, s, e.ID)
		require.Equal(t, store.DeliveryPending, r.State)
		require.Equal(t, 2, r.Attempts)
		require.True(t, r.EndedAt.IsZero())
		require.WithinDuration(t, time.Now().Add(time.Hour), r.NextAt, clockSlack)
		require.Equal(t, "acme job.failed job_1", r.Tenant+" "+r.Type+" "+r.ObjectID)
		r.Log[1].At = time.Time{}
		require.Equal(t, []store.AttemptReport{
			{Number: 1, At: store.CleanTime(at), Took: 5 * time.Millisecond, Status: 500},
			{Number: 2, Took: 5 * time.Millisecond, Failure: webhook.FailedTimeout},
		}, r.Log)
		got, err := s.Webhook(t.Context(), w.ID)
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), got.FailingSince, clockSlack)
	},

	"an endpoint that fails for long is disabled": func(t *testing.T, open Open) {
		s := migrated(t, open)
		w, _ := addWebhook(t, s, newWebhook())
		waiting, failing := store.NewEvent("acme", webhook.JobFailed, "job_1"), store.NewEvent("acme", webhook.JobFailed, "job_2")
		appendEvent(t, s, failing)
		d := leaseAll(t, s)[0]
		appendEvent(t, s, waiting)
		require.Empty(t, finish(t, s, d, fails))
		d = leaseDeliveries(t, s, func(r *store.LeaseRequest) { r.PerLane = 1 })[0]
		require.Equal(t, store.DisabledFailing, finish(t, s, d, func(a *store.Attempt) { fails(a); a.DisableAfter = time.Nanosecond }))
		got, err := s.Webhook(t.Context(), w.ID)
		require.NoError(t, err)
		require.Equal(t, store.DisabledFailing, got.DisabledFor)
		require.WithinDuration(t, time.Now(), got.DisabledAt, clockSlack)
		for _, e := range []store.Event{waiting, failing} {
			require.Equal(t, store.DeliveryFailed, reportOf(t, s, e.ID).State)
			require.ErrorIs(t, s.Redeliver(t.Context(), e.ID, w.ID), store.ErrNotFound, "it takes nothing")
		}
		require.Zero(t, appendEvent(t, s, store.NewEvent("acme", webhook.JobFailed, "job_3")))

		got, err = s.EnableWebhook(t.Context(), w.ID)
		require.NoError(t, err)
		require.Equal(t, w, got)
		require.Empty(t, leaseAll(t, s), "what was given up stays so")
		require.Equal(t, 1, appendEvent(t, s, store.NewEvent("acme", webhook.JobFailed, "job_4")))
		d = leaseAll(t, s)[0]
		require.Empty(t, finish(t, s, d, fails), "it begins anew")
		d = leaseAll(t, s)[0]
		finish(t, s, d, func(*store.Attempt) {})
		got, err = s.Webhook(t.Context(), w.ID)
		require.NoError(t, err)
		require.Equal(t, w, got, "a success is forgotten failures")
	},

	"an endpoint that is gone is disabled at once": func(t *testing.T, open Open) {
		s := migrated(t, open)
		w, _ := addWebhook(t, s, newWebhook())
		stays, _ := addWebhook(t, s, newWebhook())
		appendEvent(t, s, store.NewEvent("acme", webhook.JobFailed, "job_1"))
		appendEvent(t, s, store.NewEvent("acme", webhook.JobFailed, "job_2"))
		var held []store.Delivery
		for _, d := range leaseAll(t, s) {
			if d.WebhookID == w.ID {
				held = append(held, d)
			}
		}
		require.Len(t, held, 2)
		gone := func(a *store.Attempt) { a.Status, a.State, a.Gone = 410, store.DeliveryFailed, true }
		require.Equal(t, store.DisabledGone, finish(t, s, held[0], gone))
		require.Empty(t, finish(t, s, held[1], fails), "it is disabled already")
		reports, err := s.Deliveries(t.Context(), store.DeliveryFilter{WebhookID: w.ID, State: store.DeliveryFailed})
		require.NoError(t, err)
		require.Len(t, reports, 2, "also what was in somebody's hands")
		require.Equal(t, 1, appendEvent(t, s, store.NewEvent("acme", webhook.JobFailed, "job_3")))
		require.Equal(t, []string{stays.ID}, webhookIDs(leaseAll(t, s)))
	},

	"an endpoint is left alone for as long as it asks": func(t *testing.T, open Open) {
		s := migrated(t, open)
		w, _ := addWebhook(t, s, newWebhook())
		appendEvent(t, s, store.NewEvent("acme", webhook.JobFailed, "job_1"))
		finish(t, s, leaseAll(t, s)[0], func(a *store.Attempt) { fails(a); a.Pause = 48 * time.Hour })
		appendEvent(t, s, store.NewEvent("acme", webhook.JobFailed, "job_2"))
		other, _ := addWebhook(t, s, newWebhook())
		appendEvent(t, s, store.NewEvent("acme", webhook.JobFailed, "job_3"))
		require.Equal(t, []string{other.ID}, webhookIDs(leaseAll(t, s)))
		_, err := s.EnableWebhook(t.Context(), w.ID)
		require.NoError(t, err)
		require.Equal(t, []string{w.ID, w.ID, w.ID}, webhookIDs(leaseAll(t, s)))
	},

	"no endpoint holds another one up": func(t *testing.T, open Open) {
		s := migrated(t, open)
		w := newWebhook(webhook.JobFailed)
		busy, _ := addWebhook(t, s, w)
		for range 10 {
			appendEvent(t, s, store.NewEvent("acme", webhook.JobFailed, "job"))
		}
		late, _ := addWebhook(t, s, newWebhook(webhook.JobCompleted))
		appendEvent(t, s, store.NewEvent("acme", webhook.JobCompleted, "job"))
		few := func(most int) []store.Delivery {
			return leaseDeliveries(t, s, func(r *store.LeaseRequest) { r.Most, r.PerLane = most, 4 })
		}
		two := few(2)
		require.Len(t, two, 2)
		require.Contains(t, webhookIDs(two), late.ID, "the first of each before the second of any")
		require.Len(t, few(100), 3, "the rest of its four")
		require.Empty(t, few(100))
		i := slices.IndexFunc(two, func(d store.Delivery) bool { return d.WebhookID == busy.ID })
		finish(t, s, two[i], fails)
		require.Empty(t, few(100), "to one that fails, one at a time, and three are on their way")
	},

	"of several who ask each delivery goes to one": func(t *testing.T, open Open) {
		s := migrated(t, open)
		addWebhook(t, s, newWebhook())
		addWebhook(t, s, newWebhook())
		const events = 30
		for range events {
			appendEvent(t, s, store.NewEvent("acme", webhook.JobCompleted, "job"))
		}
		var mu sync.Mutex
		seen := make(map[string]int)
		var group errgroup.Group
		for range 4 {
			other := open()
			group.Go(func() error {
				for range 20 {
					got, err := other.LeaseDeliveries(t.Context(), store.LeaseRequest{Lease: rand.Text(), For: time.Hour, Most: 5, PerLane: events})
					if err != nil {
						return err
					}
					mu.Lock()
					for _, d := range got {
						seen[d.Event.ID+d.WebhookID]++
					}
					mu.Unlock()
				}
				return nil
			})
		}
		require.NoError(t, group.Wait())
		require.Len(t, seen, 2*events)
		for _, n := range seen {
			require.Equal(t, 1, n)
		}
	},
}
