package storetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/webhook"
	"sluice/store"
)

var deliveryLogTests = map[string]func(*testing.T, Open){
	"an event is delivered again by hand": func(t *testing.T, open Open) {
		s := migrated(t, open)
		w, _ := addWebhook(t, s, newWebhook(webhook.JobFailed))
		e := store.NewEvent("acme", webhook.JobFailed, "job_1")
		e.Target = "https://jobs.example.com/done"
		appendEvent(t, s, e)
		for _, d := range leaseAll(t, s) {
			finish(t, s, d, func(a *store.Attempt) { a.Status, a.State = 500, store.DeliveryFailed })
		}
		for range 2 { // the second asks for what is pending already
			require.NoError(t, s.Redeliver(t.Context(), e.ID, w.ID))
			require.NoError(t, s.Redeliver(t.Context(), e.ID, ""))
			require.NoError(t, s.Redeliverable(t.Context(), e.ID, w.ID))
			require.NoError(t, s.Redeliverable(t.Context(), e.ID, ""))
		}
		again := leaseAll(t, s)
		require.Equal(t, []string{"", w.ID}, webhookIDs(again))
		require.Zero(t, again[0].Failed, "the whole schedule is before it")
		require.NoError(t, s.Redeliver(t.Context(), e.ID, w.ID))
		require.Empty(t, leaseAll(t, s), "an attempt on its way is waited for")

		late, _ := addWebhook(t, s, newWebhook(webhook.BatchFailed))
		require.NoError(t, s.Redeliver(t.Context(), e.ID, late.ID), "it was not there, and did not ask for it")
		require.Equal(t, []string{late.ID}, webhookIDs(leaseAll(t, s)))
		other := newWebhook()
		other.Tenant = "other"
		other, _ = addWebhook(t, s, other)
		require.ErrorIs(t, s.Redeliver(t.Context(), e.ID, other.ID), store.ErrNotFound, "another tenant's")
		require.ErrorIs(t, s.Redeliverable(t.Context(), e.ID, other.ID), store.ErrNotFound, "another tenant's")
		require.ErrorIs(t, s.Redeliverable(t.Context(), "evt_none", late.ID), store.ErrNotFound)
		plain := store.NewEvent("acme", webhook.JobCompleted, "job_2")
		appendEvent(t, s, plain)
		require.ErrorIs(t, s.Redeliver(t.Context(), plain.ID, ""), store.ErrNotFound, "it has no target")
		require.ErrorIs(t, s.Redeliverable(t.Context(), plain.ID, ""), store.ErrNotFound, "it has no target")
		require.NoError(t, s.Redeliverable(t.Context(), plain.ID, late.ID))
		require.Empty(t, leaseAll(t, s), "to ask is to change nothing")
	},

	"the log of a delivery is bounded": func(t *testing.T, open Open) {
		s := migrated(t, open)
		addWebhook(t, s, newWebhook())
		e := store.NewEvent("acme", webhook.JobFailed, "job_1")
		appendEvent(t, s, e)
		for range store.MaxAttempts + 3 {
			finish(t, s, leaseAll(t, s)[0], fails)
		}
		r := reportOf(t, s, e.ID)
		require.Equal(t, store.MaxAttempts+3, r.Attempts)
		require.Len(t, r.Log, store.MaxAttempts)
		require.Equal(t, 4, r.Log[0].Number)
	},

	"deliveries are listed newest first": func(t *testing.T, open Open) {
		s := migrated(t, open)
		w, _ := addWebhook(t, s, newWebhook())
		other := newWebhook()
		other.Tenant = "other"
		addWebhook(t, s, other)
		var ids []string
		for _, tenant := range []string{"acme", "other", "acme"} {
			e := store.NewEvent(tenant, webhook.JobFailed, "job")
			appendEvent(t, s, e)
			ids = append(ids, e.ID)
		}
		for _, c := range []struct {
			filter store.DeliveryFilter
			want   []string
		}{
			{store.DeliveryFilter{}, []string{ids[2], ids[1], ids[0]}},
			{store.DeliveryFilter{Limit: 1}, ids[2:]},
			{store.DeliveryFilter{Tenant: "other"}, ids[1:2]},
			{store.DeliveryFilter{WebhookID: w.ID}, []string{ids[2], ids[0]}},
			{store.DeliveryFilter{EventID: ids[0], Tenant: "acme", State: store.DeliveryPending}, ids[:1]},
			{store.DeliveryFilter{EventID: ids[0], Tenant: "other"}, nil},
			{store.DeliveryFilter{State: store.DeliveryFailed}, nil},
		} {
			reports, err := s.Deliveries(t.Context(), c.filter)
			require.NoError(t, err)
			var got []string
			for _, r := range reports {
				got = append(got, r.EventID)
			}
			require.Equal(t, c.want, got, "%+v", c.filter)
		}
	},

	"what is old and over is removed": func(t *testing.T, open Open) {
		s := migrated(t, open)
		w, _ := addWebhook(t, s, newWebhook(webhook.JobFailed))
		for range 3 {
			appendEvent(t, s, store.NewEvent("acme", webhook.JobFailed, "job"))
		}
		for _, d := range leaseAll(t, s) {
			finish(t, s, d, func(*store.Attempt) {})
		}
		appendEvent(t, s, store.NewEvent("nobody", webhook.JobFailed, "job"))
		pending := store.NewEvent("acme", webhook.JobFailed, "job")
		appendEvent(t, s, pending)
		_, err := s.RotateWebhook(t.Context(), w.ID, webhook.NewSecret(), 0)
		require.NoError(t, err)
		prune := func(keep time.Duration, most int) int {
			n, err := s.PruneEvents(t.Context(), keep, most)
			require.NoError(t, err)
			return n
		}
		require.Zero(t, prune(time.Hour, 10), "nothing is so old")
		require.Equal(t, 3, prune(0, 3), "so many and no more")
		require.Equal(t, 1, prune(0, 3))
		require.Zero(t, prune(0, 3), "what is pending stays")
		reports, err := s.Deliveries(t.Context(), store.DeliveryFilter{})
		require.NoError(t, err)
		require.Len(t, reports, 1)
		require.Equal(t, pending.ID, reports[0].EventID)
		require.Len(t, leaseAll(t, s), 1)
	},
}
