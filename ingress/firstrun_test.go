package ingress

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/queue"
	"sluice/internal/routing"
)

// lives has the script announce itself as a worker does, to an ingress that has listened
// for long, until the test or what it returns ends it.
func (r *rig) lives() (dies func()) {
	r.t.Helper()
	d := r.ingress.workers
	d.mu.Lock()
	d.began = d.began.Add(-time.Minute)
	d.mu.Unlock()
	r.ingress.flights.streams.reconnected(time.Now().Add(-time.Minute))
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				_ = r.conn.Announce(queue.Presence{Worker: "worker01", Providers: []queue.ProviderPresence{{Name: "acme", MaxQueued: 4, Slots: 64}}})
			}
		}
	}()
	over := false
	dies = func() {
		if !over {
			over = true
			close(quit)
			<-done
		}
	}
	r.t.Cleanup(dies)
	return dies
}

// takenOut waits until the flight's first message is out of its queue.
func (r *rig) takenOut(f *flight) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return !f.firstRun.gone.IsZero()
	}, soon, time.Millisecond)
}

// A request that waited is given back although others behind it were begun before anybody
// asked, as long as all workers live.
func TestWhatOthersOvertookIsGivenBack(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, withLimits(c, limits.Limits{TokensPerMinute: 1000}))
	k := r.chat(capped)
	f := r.published()
	k.cancel()
	r.takenOut(f)
	r.lives()
	r.chat(capped)
	r.work()
	require.NotEqual(t, f.job.ID, r.take().job.ID)
	c.released(1)
	require.Zero(t, r.row(f.job.ID).Attempts)
}

// The same while nobody knows who lives, as this ingress has just begun, or workers of
// whatever provider come and go: the queue is asked before others are given to workers.
func TestWhatWaitedWhenItWasTakenOutIsGivenBack(t *testing.T) {
	t.Parallel()
	for name, giveUp := range map[string]func(*rig, *call, *flight){
		"its client leaves": func(_ *rig, k *call, _ *flight) { k.cancel() },
		"it goes elsewhere": func(r *rig, k *call, f *flight) {
			f.mu.Lock()
			left := queue.Place{Candidates: []inference.Candidate{f.at()}, Seq: f.place.seq}
			f.candidates = []inference.Candidate{{Provider: "other", Model: "m"}}
			f.place.seq = 0
			again := f.message()
			f.mu.Unlock()
			r.ingress.flights.aside(f, &again, left)
			r.waited(f)
			k.cancel()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCounters(t)
			r := setup(t, withLimits(c, limits.Limits{TokensPerMinute: 1000}))
			k := r.chat(capped)
			f := r.published()
			f.mu.Lock()
			f.firstRun.confirmed = f.firstRun.confirmed.Add(time.Minute) // when its queue was surely there
			f.mu.Unlock()
			giveUp(r, k, f)
			r.waited(f)
			r.chat(capped)
			r.work()
			require.NotEqual(t, f.job.ID, r.take().job.ID)
			c.released(1)
			require.Zero(t, r.row(f.job.ID).Attempts)
		})
	}
}

// waited waits until it is known of the flight's first message that no worker had it.
func (r *rig) waited(f *flight) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.firstRun.waited
	}, soon, time.Millisecond)
}

// The same with a worker that is lost meanwhile: whatever the queue says may be of the
// request that was given up.
func TestWhatALostWorkerMayHaveBegunIsCounted(t *testing.T) {
	t.Parallel()
	for name, course := range map[string]func(*rig, *call, *flight){
		"it had the request": func(r *rig, k *call, _ *flight) {
			dies := r.lives()
			r.work()
			r.take()
			dies()
			k.cancel()
		},
		"it left and was killed": func(r *rig, k *call, _ *flight) {
			r.lives()
			r.work()
			r.take()
			require.NoError(r.t, r.conn.Announce(queue.Presence{Worker: "worker02"}))
			require.NoError(r.t, r.conn.Announce(queue.Presence{Worker: "worker02", Leaving: true}))
			require.Eventually(r.t, func() bool {
				r.ingress.workers.mu.Lock()
				defer r.ingress.workers.mu.Unlock()
				return !r.ingress.workers.parted.since("acme").IsZero()
			}, soon, time.Millisecond)
			k.cancel()
		},
		"its queue is gone as well": func(_ *rig, k *call, f *flight) {
			f.mu.Lock()
			f.firstRun.provider = "nobody"
			f.mu.Unlock()
			k.cancel()
		},
		"it could not be taken out": func(_ *rig, k *call, f *flight) {
			f.mu.Lock()
			f.firstRun.seq, f.place.seq = 0, 0 // as if no word of the server had come
			f.firstRun.unanswered = 1
			f.mu.Unlock()
			k.cancel()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCounters(t)
			r := setup(t, withLimits(c, limits.Limits{TokensPerMinute: 1000}))
			k := r.chat(capped)
			f := r.published()
			course(r, k, f)
			c.quiet("settle 1")
			require.Equal(t, 1, r.row(f.job.ID).Attempts)
		})
	}
}

// released waits for so many reservations to be given back, and for no other end.
func (c *counters) released(n int) {
	c.t.Helper()
	for range n {
		require.Equal(c.t, "release", next(c.t, c.ended))
	}
}

func TestWhoIsKnownToLive(t *testing.T) {
	t.Parallel()
	published := t0.Add(workerGone)
	left := published.Add(time.Second)
	spoke := func(after time.Duration) func(*directory) {
		return func(d *directory) { d.workers["w"] = announced{at: left.Add(after)} }
	}
	for name, c := range map[string]struct {
		change    func(*directory)
		connected time.Time
		want      bool
	}{
		"nobody was there":              {func(*directory) {}, t0, true},
		"has spoken since":              {spoke(spokeAfter), t0, true},
		"may have been killed since":    {spoke(spokeAfter - 1), t0, false},
		"another one is silent":         {func(d *directory) { spoke(time.Hour)(d); d.workers["silent"] = announced{at: left} }, t0, false},
		"one has parted before":         {func(d *directory) { d.parted.left([]string{"acme"}, published.Add(-1)) }, t0, true},
		"one has parted since":          {func(d *directory) { d.parted.left([]string{"acme"}, published) }, t0, false},
		"another's has parted since":    {func(d *directory) { d.parted.left([]string{"other"}, published) }, t0, true},
		"one was lost since":            {func(d *directory) { d.parted.lost(published) }, t0, false},
		"this ingress has just begun":   {func(d *directory) { d.began = t0.Add(1) }, t0, false},
		"this ingress was out of reach": {spoke(time.Hour), t0.Add(1), false},
		"there are too many to know": {func(d *directory) {
			for n := range maxWorkers {
				d.workers[string(rune(n+1000))] = announced{at: left.Add(time.Hour)}
			}
		}, t0, false},
	} {
		d := directoryOf(nil, routing.Policy{})
		d.began = t0
		c.change(d)
		require.Equal(t, c.want, d.allSpoke("acme", published, left, c.connected), name)
	}
}

func TestADirectoryNotesWhoParts(t *testing.T) {
	t.Parallel()
	d := directoryOf(nil, routing.Policy{})
	serving := func(worker string, providers ...string) queue.Presence {
		p := presence(worker)
		for _, name := range providers {
			p.Providers = append(p.Providers, queue.ProviderPresence{Name: name})
		}
		return p
	}
	leaves := func(worker string, providers ...string) {
		p := serving(worker, providers...)
		p.Leaving = true
		d.heard(p)
	}
	recently := func(provider string) bool { return time.Since(d.parted.since(provider)) < soon }
	for _, worker := range []string{"w1", "w2", "w3"} {
		d.heard(serving(worker, "a"))
	}
	leaves("nobody")
	require.False(t, recently("a"))
	d.heard(serving("w1", "b")) // it works off what is in the other queue
	leaves("w1", "c")
	for _, provider := range []string{"a", "b", "c"} {
		require.True(t, recently(provider), provider)
	}
	require.False(t, recently("d"))
	d.heard(presence("w4"))
	leaves("w4")
	require.True(t, recently("d"), "it may have begun with any")
	at := time.Now().Add(2 * workerGone)
	d.expire(at)
	require.Equal(t, at, d.parted.since("d"), "what it began with last it had no time to say")
}

func TestWhoPartedIsRememberedWithinBounds(t *testing.T) {
	t.Parallel()
	var p parted
	for n := range partedMost + 1 {
		require.True(t, p.someone.IsZero())
		p.left([]string{strconv.Itoa(n)}, t0)
	}
	require.Equal(t, t0, p.since("unknown"))
	require.Empty(t, p.byProvider)
	var all []queue.ProviderPresence
	for n := range 2 * namedMost {
		all = append(all, queue.ProviderPresence{Name: strconv.Itoa(n)})
	}
	require.Len(t, named(nil, all), namedMost)
	p.left(named(nil, all), t0.Add(1))
	require.Equal(t, t0.Add(1), p.since("unknown"))
}

func TestWhatIsKnownOfTheFirstRun(t *testing.T) {
	t.Parallel()
	sent, now := t0.Add(time.Hour), t0.Add(time.Hour+time.Minute)
	place := inQueue(7, "b")
	for name, c := range map[string]struct {
		course func(*flight)
		want   begun
	}{
		"not answered":          {func(*flight) {}, begunMaybe},
		"refused":               {func(f *flight) { f.firstRun.answered(0, 0, now) }, begunNo},
		"taken":                 {func(f *flight) { f.firstRun.answered(0, 5, now) }, begunMaybe},
		"taken out":             {func(f *flight) { f.firstRun.answered(0, 5, now); f.firstRun.left("acme", 5, now) }, begunAsk},
		"taken out, had waited": {func(f *flight) { f.firstRun.answered(0, 5, now); f.firstRun.waited = true }, begunNo},
		"had waited, may be there a second time": {func(f *flight) {
			f.firstRun.again(0)
			f.firstRun.answered(0, 5, now)
			f.firstRun.left("acme", 5, now)
			f.firstRun.waited = true
		}, begunMaybe},
		"another one taken out":   {func(f *flight) { f.firstRun.answered(0, 5, now); f.firstRun.left("acme", 6, now) }, begunMaybe},
		"taken out elsewhere":     {func(f *flight) { f.firstRun.answered(0, 5, now); f.firstRun.left("b", 5, now) }, begunMaybe},
		"a later epoch taken":     {func(f *flight) { f.firstRun.answered(0, 0, now); f.firstRun.answered(64, 5, now) }, begunNo},
		"repeated, answered once": {func(f *flight) { f.firstRun.again(0); f.firstRun.answered(0, 5, now); f.firstRun.left("acme", 5, now) }, begunMaybe},
		"repeated, answered twice": {func(f *flight) {
			f.firstRun.again(0)
			f.firstRun.answered(0, 5, now)
			f.firstRun.answered(0, 5, now)
			f.firstRun.left("acme", 5, now)
		}, begunAsk},
		"held":                    {func(f *flight) { f.firstRun.answered(0, 5, now); f.holds(epoch0run1, now) }, begunNo},
		"the second run held":     {func(f *flight) { f.firstRun.answered(0, 5, now); f.holds(epoch0run2, now) }, begunMaybe},
		"held, heard of too late": {func(f *flight) { f.firstRun.answered(0, 5, now); f.holds(epoch0run2, now); f.holds(epoch0run1, now) }, begunNo},
		"answered":                {func(f *flight) { f.firstRun.answered(0, 5, now); f.events(eventsOf(epoch0run1), now) }, begunNo},
		"ended": {func(f *flight) {
			f.firstRun.answered(0, 5, now)
			f.finish(&queue.End{Run: epoch0run1}, inference.OutcomeSucceeded)
		}, begunNo},
		"given back": {func(f *flight) { f.firstRun.answered(0, 5, now); f.passed(&queue.Passed{Run: epoch0run1}, now) }, begunNo},
		"given back late": {func(f *flight) {
			f.firstRun.answered(0, 5, now)
			f.leave(inference.OutcomeCancelled, errClientGone(), now)
			f.passed(&queue.Passed{Run: epoch0run1}, now)
		}, begunNo},
		"given back by the second run": {func(f *flight) { f.firstRun.answered(0, 5, now); f.passed(&queue.Passed{Run: epoch0run2}, now) }, begunMaybe},
		"claimed a second time": {func(f *flight) {
			f.firstRun.answered(0, 5, now)
			_, _ = f.claim(queue.Claim{Run: epoch0run2, Place: place}, now)
		}, begunMaybe},
	} {
		f := newTestFlight()
		f.job.Stream = false
		f.firstRun = firstRun{provider: "acme", sent: sent, unanswered: 1}
		c.course(f)
		d := directoryOf(nil, routing.Policy{})
		require.Equal(t, c.want, f.unheard(t0, d), name)
	}
}

// A streamed job whose ingress is out of reach goes on without it at last.
func TestAStreamMayHaveBegunWithoutItsIngress(t *testing.T) {
	t.Parallel()
	f := newTestFlight()
	f.firstRun = firstRun{provider: "acme", sent: t0, unanswered: 1}
	f.firstRun.answered(0, 5, t0)
	d := directoryOf(nil, routing.Policy{})
	f.passed(&queue.Passed{Run: epoch0run1}, t0.Add(time.Minute))
	require.Equal(t, begunNo, f.unheard(t0.Add(time.Second), d))
	require.Equal(t, begunMaybe, f.unheard(t0.Add(time.Hour), d))
	f.job.Stream = false
	require.Equal(t, begunNo, f.unheard(t0.Add(time.Hour), d))
}

// A worker that is lost while it waits for a breaker may call when that lets it, unheard.
func TestWhatALostWorkerWaitedWithIsCounted(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		silent time.Duration
		speaks bool
		want   string
	}{"it is lost": {aliveFor, false, "settle 1"}, "it speaks": {0, true, "release"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			counters := newCounters(t)
			r := setup(t, withLimits(counters, limits.Limits{TokensPerMinute: 1000}))
			r.work()
			k := r.chat(capped)
			job := r.take()
			f := r.ingress.flights.find(job.job.ID)
			job.idles()
			f.mu.Lock()
			f.heardAt = f.heardAt.Add(-c.silent)
			f.mu.Unlock()
			k.cancel()
			<-f.done
			held := []queue.HeldJob{{JobID: job.job.ID, Run: job.run, Idle: true}}
			require.Eventually(t, func() bool {
				if c.speaks {
					require.NoError(t, r.answer.Hold(held))
				}
				return len(counters.ended) > 0
			}, soon, 100*time.Millisecond)
			counters.quiet(c.want)
		})
	}
}
