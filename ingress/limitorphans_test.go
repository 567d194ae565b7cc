package ingress

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/queue"
	"sluice/internal/token"
	"sluice/store"
)

func TestACallThatOutlivedItsIngressIsFreeWhenItsRowIsStored(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	stored, down := make(map[string]bool), false
	keys := &keyTable{changed: []store.Key{{ID: "known", Tenant: "none", Limits: &limits.Limits{Concurrent: 3}}}}
	r := setup(t, withLimits(c, limits.Limits{Concurrent: 5, Models: []limits.ModelLimits{{Models: []string{"m"}, Concurrent: 2}}}, func(l *LimitSettings) {
		l.Tenants = map[string]*limits.Limits{"team": {Concurrent: 9}}
		l.Models = []limits.ModelLimits{{Models: []string{"m"}, Concurrent: 9}}
	}), func(o *Options) {
		o.Keys = keys
		o.Append = func(_ context.Context, records []inference.Record) (inserted int, err error) {
			if down {
				return 0, errors.New("no database")
			}
			for _, rec := range records {
				if !stored[rec.JobID] {
					stored[rec.JobID] = true
					inserted++
				}
			}
			return inserted, nil
		}
	})
	row := func(ingress, key, tenant string, outcome inference.Outcome) inference.Record {
		return inference.Record{JobID: queue.NewJobID(ingress, time.Now()), KeyID: key, Tenant: tenant, ModelAsked: "acme/m", Provider: "acme", Outcome: outcome}
	}
	answered := row("gonegone", "key", "team", inference.OutcomeSucceeded)
	first, second := row("gonegone", "key", "team", inference.OutcomeAbandoned), row("gonegona", "known", "none", inference.OutcomeAbandoned)
	own := row(r.ingress.opt.ID, "key", "team", inference.OutcomeAbandoned)
	unlimited := row("gonegone", "other", "none", inference.OutcomeAbandoned)
	unlimited.ModelAsked = "m-1"
	all := []inference.Record{answered, answered, first, own, first, second, unlimited, answered}
	down = true
	require.Error(t, r.ingress.storeRecords(t.Context(), all))
	down = false
	require.NoError(t, r.ingress.storeRecords(t.Context(), all))
	require.NoError(t, r.ingress.storeRecords(t.Context(), all), "they come again")
	require.Len(t, stored, 5)
	c.quiet("ended gonegone [key:key key:key/models:m tenant:team model:m]", "ended gonegona [key:known model:m]")
}

func TestRequestsCountUntilTheirDeadlineWithoutTheirIngress(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, oneAtATime(c))
	r.work()
	ends := func() time.Time {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.last.Ends
	}
	first := r.chat(capped)
	job := r.take()
	require.WithinDuration(t, job.job.Deadline, ends(), time.Millisecond)
	second := r.chat(capped)
	r.waiting(1)
	job.succeed(`{"id":"1"}`)
	job = r.take()
	require.WithinDuration(t, job.job.Deadline, ends(), time.Millisecond, "also of one that has waited")
	job.succeed(`{"id":"2"}`)
	first.response()
	second.response()
	c.quiet("settle 7", "settle 7")
}

// The limits of a caller with tokens are its issuer's.
func TestACallOfATokenThatOutlivedItsIngressIsFree(t *testing.T) {
	t.Parallel()
	s, _ := door(t)
	caller, err := s.authenticate(asking(jwt()))
	require.NoError(t, err)
	c := newCounters(t)
	s.opt.Limiter, s.opt.Keys = c, &keyTable{}
	s.limits = newLimiting(s)
	next, issuer := *s.current(), loginIssuer()
	issuer.Limits = &limits.Limits{Concurrent: 1}
	next.Tokens = []token.Issuer{issuer}
	s.Apply(next)
	s.freeOrphan(t.Context(), &inference.Record{JobID: queue.NewJobID("gonegone", time.Now()), KeyID: caller.ID, Tenant: caller.Tenant, ModelAsked: "m"})
	c.quiet("ended gonegone [key:" + caller.ID + "]")
}
