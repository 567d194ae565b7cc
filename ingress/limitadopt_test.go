package ingress

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/limits"
	"sluice/store"
)

// atATime are the limits of these tests, within which nothing but one more request is refused.
var atATime = limits.Limits{Concurrent: 2, TokensPerMinute: 1000}

// leftBehind is an ingress with two jobs that wait in the queue, and no worker. What another
// one has in hand is counted apart, as if what this one had were gone already.
func leftBehind(t *testing.T) (r *jobRig, ids []string) {
	t.Helper()
	r = setupJobs(t, withLimits(newCounters(t), atATime))
	for range 2 {
		ids = append(ids, r.later(capped))
	}
	for _, id := range ids {
		require.Eventually(t, func() bool { return !r.stored(id).DispatchedAt.IsZero() }, soon, time.Millisecond)
	}
	return r, ids
}

// another starts one more ingress, which is the rig's from then on.
func (r *jobRig) another(c *counters) {
	r.t.Helper()
	r.ingress, r.server = r.startIngress(withJobs(r.db), withLimits(c, atATime))
}

// idle returns what takes over for one more ingress that does nothing by itself.
func (r *jobRig) idle(c *counters) *adoption {
	r.t.Helper()
	l := newJobLimits(r.ingress, func() {})
	l.limiting = &limiting{by: c, metrics: r.ingress.limits.metrics}
	return &adoption{limits: l, rows: r.db, conn: r.connect(), id: "another1"}
}

// finish ends all that was left behind, and one job more that waited for its turn.
func (r *jobRig) finish(c *counters, ids []string) {
	r.t.Helper()
	next := r.later(capped)
	require.Eventually(r.t, func() bool { return !r.stored(next).NotBefore.IsZero() }, soon, time.Millisecond, "it is put off")
	require.EqualValues(r.t, 2, c.concurrent())
	r.work()
	for range 3 {
		r.take().done(`{}`)
	}
	for _, id := range append(ids, next) {
		require.Equal(r.t, "completed", r.show(id, "?wait=10s").Status)
	}
	c.quiet("settle 7", "settle 7", "settle 7")
}

// kill cuts the ingress off: nobody hears it any more.
func (r *jobRig) kill() { r.ingress.conn.Close() }

func TestWhatAnIngressHadInHandThatIsGoneAnotherOneHolds(t *testing.T) {
	t.Parallel()
	r, ids := leftBehind(t)
	gone, c := r.ingress, newCounters(t)
	r.another(c)
	require.Zero(t, c.concurrent(), "both are there")
	gone.conn.Close()
	require.Eventually(t, func() bool { return c.concurrent() == 2 }, soon, 10*time.Millisecond)
	r.finish(c, ids)
}

func TestAnIngressThatStartsAgainHoldsWhatItHad(t *testing.T) {
	t.Parallel()
	r, ids := leftBehind(t)
	r.kill()
	c := newCounters(t)
	r.another(c)
	require.EqualValues(t, 2, c.concurrent(), "before anything else is done")
	r.finish(c, ids)
}

// An ingress is gone when nobody hears it twice, or at the start of another one, which may
// come too late to ask again.
func TestAnIngressThatIsCutOffForAMomentKeepsItsJobs(t *testing.T) {
	t.Parallel()
	r, _ := leftBehind(t)
	c := newCounters(t)
	a := r.idle(c)
	require.NoError(t, a.look(t.Context()))
	require.True(t, a.limits.looked.Load())
	r.kill()
	require.NoError(t, a.look(t.Context()))
	require.Zero(t, c.concurrent())
	a.silent = nil // it answered meanwhile
	require.NoError(t, a.look(t.Context()))
	require.Zero(t, c.concurrent())
	require.NoError(t, a.look(t.Context()))
	require.EqualValues(t, 2, c.concurrent())
	require.NoError(t, a.look(t.Context()))
	require.EqualValues(t, 2, c.concurrent(), "once")
}

// While nobody can tell who is gone, or what their jobs hold, none is let in that is limited.
func TestNothingLimitedIsLetInBeforeWhatIsGoneIsHeld(t *testing.T) {
	t.Parallel()
	r, _ := leftBehind(t)
	c := newCounters(t)
	a := r.idle(c)
	job := r.ingress.stored.message(&store.Job{ID: "new", KeyID: "key", Tenant: "team", Model: "m", Body: []byte(capped), Kind: "chat"})
	down := false
	r.kill()
	a.conn.Close()
	require.Error(t, a.begin(t.Context()))
	until, never := a.limits.admit(t.Context(), job, nil, &down)
	require.Nil(t, never)
	require.False(t, until.IsZero())
	a.conn = r.connect()
	require.NoError(t, a.begin(t.Context()))
	until, never = a.limits.admit(t.Context(), job, nil, &down)
	require.Nil(t, never)
	require.False(t, until.IsZero(), "there are two")
	require.EqualValues(t, 2, c.concurrent())
}

// What one ingress held that another one has taken over counts there.
func TestAnIngressLetsGoOfWhatAnotherOneHolds(t *testing.T) {
	t.Parallel()
	r, _ := leftBehind(t)
	ours := r.ingress.stored.limits
	require.Len(t, ours.heldJobs(), 2)
	jobs, err := r.db.AdoptJobs(t.Context(), r.ingress.opt.ID, "another1", 1)
	require.NoError(t, err)
	require.Len(t, jobs, 1)
	a := &adoption{limits: ours, rows: r.db, conn: r.ingress.conn, id: r.ingress.opt.ID, silent: map[string]bool{}}
	require.NoError(t, a.letGo(t.Context()))
	require.NotContains(t, ours.heldJobs(), jobs[0].ID)
	require.Len(t, ours.heldJobs(), 1)
}

// A job that ends before, or that nothing limits, leaves nothing in hand.
func TestWhatNeedsNoHoldIsTakenOverWithoutOne(t *testing.T) {
	t.Parallel()
	r, ids := leftBehind(t)
	c := newCounters(t)
	a := r.idle(c)
	r.kill()
	resp, _ := r.send(r.request("DELETE", r.server.URL+"/v1/jobs/"+ids[0], "")).whole()
	require.Equal(t, 200, resp.StatusCode)
	free := r.ingress.current()
	a.limits.settings = func() *Settings { s := *free; s.StaticKeys = nil; return &s }
	require.NoError(t, a.look(t.Context()))
	held, err := r.db.HeldBy(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"another1"}, held)
	require.Empty(t, a.limits.heldJobs())
	require.Zero(t, c.concurrent())
}
