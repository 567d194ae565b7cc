package worker

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/providers"
)

// A model may be called for the first time while the others are listed.
func TestModelsAreListedWhileOthersCome(t *testing.T) {
	t.Parallel()
	for range 5 {
		bs := newBreakers(testBreaker, func(string, string) {}, func(string) {})
		var all sync.WaitGroup
		all.Go(func() {
			for n := range maxModels {
				bs.of(fmt.Sprint("m", n), time.Now())
			}
		})
		all.Go(func() {
			for range 500 {
				bs.states(time.Now())
			}
		})
		all.Wait()
	}
}

// A call that was not made because the keys were told to wait by another one does not
// count, and may be over at once.
func TestRetryAfterATryThatDoesNotCount(t *testing.T) {
	t.Parallel()
	e := &inference.Error{Code: inference.CodeUpstreamRateLimited, Retryable: true}
	require.NotPanics(t, func() {
		wait, again := retryAfter(retryState{err: e, tries: 0, maxRetries: 2, left: time.Minute})
		require.True(t, again)
		require.Less(t, wait, retryBase)
	})
}

// A worker that joins does not know the others yet: it must not govern.
func TestAWorkerThatJoinsLeavesTheBoundAlone(t *testing.T) {
	t.Parallel()
	r, js := listening(t, hang)
	a := r.idle("a", adaptive)
	require.NoError(t, a.conn.EnsureConsumer(t.Context(), testName, 16))
	g := newGovernor(a.pools[0])
	g.limit.now = 5
	require.Equal(t, 5, g.govern(t.Context(), queue.ProviderPresence{Name: testName}, time.Now()))
	isBound(t, js, 5)
	r.start("b", adaptive)
	<-time.After(beat / 2) // the others are heard of once in a second
	r.announced(says("a", queue.ProviderPresence{Name: testName, Limit: 5}))
	staysBound(t, js, 5)
}

// A server with memory storage forgets the consumer; the limit is not the server's to
// forget.
func TestTheBoundIsRestoredAfterTheConsumerWasLost(t *testing.T) {
	t.Parallel()
	r, js := listening(t, hang)
	w, _ := r.start("a", adaptive, func(o *Options) { o.Members[0].Provider = &cooling{script: script{fn: hang}} })
	isBound(t, js, 16)
	w.pools[0].limited.Add(1) // a 429
	isBound(t, js, 11)
	require.NoError(t, js.DeleteConsumer(t.Context(), "SLUICE_JOB_"+testName, string(inference.LaneInteractive)))
	w.needRebuild()
	require.Eventually(t, func() bool { return bound(t, js) > 0 }, soon, 10*time.Millisecond)
	isBound(t, js, 11)
}

// A provider that is well again is not given more calls at once than it bears, however
// many jobs waited for that.
func TestHeldJobsKeepToTheLimit(t *testing.T) {
	t.Parallel()
	var m meter
	var ill atomic.Bool
	ill.Store(true)
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		if ill.Load() {
			return nil, errDown
		}
		m.enter()
		defer m.leave()
		<-time.After(50 * time.Millisecond)
		return answer(`{}`)
	})
	few := func(o *Options) { tripping(8, 5*time.Second)(o); o.Members[0].Concurrency = 2 }
	w, _ := r.start("a", few)
	r.publish(newJob(false))
	r.settle(next(t, r.ends))
	for range 8 {
		r.publish(newJob(false))
	}
	require.Eventually(t, func() bool {
		ill.Store(w.pools[0].lanes[0].held.Load() < 8)
		return !ill.Load()
	}, soon, time.Millisecond, "all are held")
	r.settleAll(8)
	require.LessOrEqual(t, m.most.Load(), int64(2))
}

// The other worker may be busy for long: until then the job must not go round and round.
func TestAJobThatIsLeftToABusyPeerDoesNotSpin(t *testing.T) {
	t.Parallel()
	r := setup(t, down)
	r.announced(elsewhere(testName)) // it is well, and takes nothing
	w, _ := r.start("worker01", tripping(4, time.Hour), func(o *Options) { o.Members[0].MaxRetries = 2 })
	hears(t, w, testName)
	p := w.pools[0]
	done, _, err := p.admit("m")
	require.NoError(t, err)
	done(errDown)
	done, _, err = p.admit("well") // else it would take no jobs at all
	require.NoError(t, err)
	done(nil)
	j := newJob(false)
	r.publish(j)
	next(t, r.claims)
	<-time.After(time.Second)
	require.Less(t, len(r.claims), 30, "questions in a second")
}

// The 429s from before a worker governs have been taken into account by the one before.
func TestOld429sDoNotCountWhenTheLeaderChanges(t *testing.T) {
	t.Parallel()
	r := setup(t, hang)
	w := r.idle("b", adaptive)
	require.NoError(t, w.conn.EnsureConsumer(t.Context(), testName, 16))
	g := newGovernor(w.pools[0])
	now := time.Now()
	own := queue.ProviderPresence{Name: testName, InFlight: 4, Limited: 500}
	w.peers.heard(says("a", queue.ProviderPresence{Name: testName, Limit: 12}))
	require.Equal(t, 12, g.govern(t.Context(), own, now))
	w.peers.heard(queue.Presence{Worker: "a", Leaving: true})
	require.Equal(t, 12, g.govern(t.Context(), own, now.Add(adjustEvery)))
}

// A worker of a lower id than the others takes over what they have learned.
func TestANewLeaderGoesOnFromTheLimit(t *testing.T) {
	t.Parallel()
	r := setup(t, hang)
	w := r.idle("a", adaptive)
	require.NoError(t, w.conn.EnsureConsumer(t.Context(), testName, 16))
	w.peers.heard(says("b", queue.ProviderPresence{Name: testName, Limit: 3}))
	g := newGovernor(w.pools[0])
	require.Equal(t, 3, g.govern(t.Context(), queue.ProviderPresence{Name: testName}, time.Now()))
}

// A worker that stops does not wait for a slot to give a held job back.
func TestAHeldJobGoesBackAlthoughNoSlotIsFree(t *testing.T) {
	t.Parallel()
	r, w, stop, probe, waits := probing(t, soon)
	j := newJob(false)
	j.Candidates[0].Model = "other"
	r.publish(j) // has the slot of the one that waits
	require.Eventually(t, func() bool { return r.script.count() == 3 }, soon, time.Millisecond)
	require.EqualValues(t, 1, w.pools[0].lanes[0].held.Load())
	stopped := make(chan struct{})
	go func() { defer close(stopped); stop() }()
	select {
	case told := <-r.passed:
		require.Equal(t, waits.ID, told.JobID)
	case <-time.After(3 * time.Second):
		t.Error("it waits for a slot")
	}
	for _, id := range []string{probe.ID, j.ID} {
		require.NoError(t, r.dispatch.Cancel(t.Context(), id, testName, 0))
	}
	r.settleAll(2)
	next(t, stopped)
}

// However short a wait the provider asks for, retries have their bounds.
func TestCallsAfter429sAreBounded(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return nil, &inference.Error{Code: inference.CodeUpstreamRateLimited, Status: 429, RetryAfter: time.Millisecond, Retryable: true}
	})
	r.start("worker01")
	j := newJob(false)
	j.Deadline = time.UnixMilli(time.Now().Add(3 * time.Second).UnixMilli())
	r.publish(j)
	e := next(t, r.ends)
	r.settle(e)
	require.LessOrEqual(t, len(e.Tries), inference.MaxTries)
	require.Less(t, r.script.count(), 50, "calls for one job in three seconds")
}
