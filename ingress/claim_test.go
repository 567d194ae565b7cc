package ingress

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/internal/routing"
)

// passed1run1 is the first run of a message that a worker published when it passed the
// job on.
var passed1run1 = queue.Run{Epoch: 1, Delivery: 1}

func inQueue(seq uint64, providers ...string) queue.Place {
	p := queue.Place{Seq: seq}
	for _, name := range providers {
		p.Candidates = append(p.Candidates, inference.Candidate{Provider: name, Model: "m-" + name})
	}
	return p
}

// newTestRoute is a flight with candidates at several providers.
func newTestRoute(providers ...string) *flight {
	f := newTestFlight()
	f.job.Candidates = inQueue(0, providers...).Candidates
	f.candidates = f.job.Candidates
	return f
}

func TestJudge(t *testing.T) {
	t.Parallel()
	alive, silent := t0.Add(aliveFor-1), t0.Add(aliveFor)
	nothing := func(*flight) {}
	holds := func(r queue.Run) func(*flight) { return func(f *flight) { f.heard(r, t0) } }
	begun := func(r queue.Run) func(*flight) { return func(f *flight) { f.events(eventsOf(r), t0) } }
	for name, c := range map[string]struct {
		before  func(f *flight)
		run     queue.Run
		place   queue.Place
		at      time.Time
		want    queue.Verdict
		lost    bool
		lostNow int
	}{
		"passed on before the word of it":         {holds(epoch0run1), passed1run1, inQueue(5, "b"), alive, queue.VerdictRun, false, 0},
		"passed on long ago":                      {holds(epoch0run1), passed1run1, inQueue(5, "b"), silent, queue.VerdictRun, false, 0},
		"passed on, and another answers":          {begun(epoch0run1), passed1run1, inQueue(5, "b"), alive, queue.VerdictDrop, false, 0},
		"passed on, and another was lost":         {begun(epoch0run1), passed1run1, inQueue(5, "b"), silent, queue.VerdictWait, true, 0},
		"passed on by a message of the ingress's": {holds(epoch1run1), queue.Run{Epoch: inference.EpochStride + 1, Delivery: 1}, inQueue(5, "b"), alive, queue.VerdictRun, false, 0},
		"published again, and one is at it":       {holds(epoch0run1), epoch1run1, inQueue(5, "acme"), alive, queue.VerdictWait, false, 0},
		"published again, and one was lost":       {holds(epoch0run1), epoch1run1, inQueue(5, "acme"), silent, queue.VerdictRun, false, 1},
		"passed on before it was published again": {holds(epoch1run1), passed1run1, inQueue(5, "b"), silent, queue.VerdictDrop, false, 0},
		"an earlier epoch":                        {holds(passed1run1), epoch0run2, inQueue(1, "acme"), silent, queue.VerdictDrop, false, 0},
		"a later delivery of what was passed on":  {holds(passed1run1), queue.Run{Epoch: 1, Delivery: 2}, queue.Place{}, alive, queue.VerdictWait, false, 0},
		"lost after it was passed on":             {holds(passed1run1), queue.Run{Epoch: 1, Delivery: 2}, queue.Place{}, silent, queue.VerdictRun, false, 1},
		"passed on after many were lost": {
			func(f *flight) { f.heard(epoch0run1, t0); f.lostRuns = maxLostRuns }, passed1run1, inQueue(5, "b"), silent,
			queue.VerdictWait, true, maxLostRuns,
		},
		"a second message of the same epoch": {func(f *flight) { f.move(queue.Run{Epoch: 1}, inQueue(5, "b"), t0) }, passed1run1, inQueue(6, "b"), silent, queue.VerdictDrop, false, 0},
		"the same place in another queue":    {func(f *flight) { f.move(queue.Run{Epoch: 1}, inQueue(5, "b"), t0) }, passed1run1, inQueue(5, "c"), silent, queue.VerdictDrop, false, 0},
		"the message that stands for it":     {func(f *flight) { f.move(queue.Run{Epoch: 1}, inQueue(5, "b"), t0) }, passed1run1, inQueue(5, "b"), alive, queue.VerdictRun, false, 0},
		"a message whose place nobody knows": {func(f *flight) { f.move(queue.Run{Epoch: 1}, inQueue(5, "b"), t0) }, passed1run1, queue.Place{}, alive, queue.VerdictRun, false, 0},
		"given back": {func(f *flight) {
			f.heard(epoch0run1, t0)
			require.True(t, f.passed(&queue.Passed{Run: epoch0run1}, t0))
		}, epoch0run2, queue.Place{}, t0, queue.VerdictRun, false, 0},
		"only asked whether anybody is here": {nothing, queue.Run{}, queue.Place{}, silent, queue.VerdictWait, false, 0},
		"asked so after it was passed on":    {holds(passed1run1), queue.Run{}, queue.Place{}, silent, queue.VerdictDrop, false, 0},
		"passed on, but ended":               {func(f *flight) { f.finish(&queue.End{Run: epoch0run1}, inference.OutcomeSucceeded) }, passed1run1, inQueue(5, "b"), silent, queue.VerdictWait, false, 0},
		"passed on, but left":                {func(f *flight) { f.leave(inference.OutcomeCancelled, errClientGone(), t0) }, passed1run1, inQueue(5, "b"), silent, queue.VerdictWait, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newTestFlight()
			c.before(f)
			epoch, was := f.job.Epoch, f.run
			judged, lost := f.claim(queue.Claim{Run: c.run, Place: c.place}, c.at)
			require.Equal(t, c.want, judged.Verdict)
			require.Equal(t, c.lost, lost != nil)
			require.Equal(t, c.lostNow, f.lostRuns)
			if c.want != queue.VerdictRun {
				require.Equal(t, was, f.run)
				require.Equal(t, epoch, f.job.Epoch)
				return
			}
			require.Equal(t, c.run, f.run)
			require.Equal(t, c.at, f.heardAt)
			if c.place.Seq > 0 {
				require.Equal(t, c.run.Epoch, f.job.Epoch)
				require.Equal(t, c.place.Candidates, f.candidates)
				require.Equal(t, c.place.Seq, f.place.seq)
			}
		})
	}
}

// A run that takes over goes on counting where those before it stopped.
func TestAClaimIsToldWhatWasTried(t *testing.T) {
	t.Parallel()
	f := newTestRoute("a", "b")
	f.heard(epoch0run1, t0)
	tries := []inference.Try{{Provider: "a", Code: inference.CodeUpstreamError}}
	require.True(t, f.passed(&queue.Passed{Run: epoch0run1, Attempts: 2, Tries: tries}, t0))
	require.False(t, f.held)
	judged, _ := f.claim(queue.Claim{Run: epoch0run2}, t0)
	require.Equal(t, queue.Judgement{Verdict: queue.VerdictRun, Attempts: 2, Tries: tries}, judged)
	m := f.message()
	require.Equal(t, 2, m.Attempts)
	require.Equal(t, tries, m.Tries)
	require.True(t, f.leave(inference.OutcomeExpired, errClientGone(), t0))
	require.Equal(t, 3, f.end.Attempts)
	require.Equal(t, tries, f.end.Tries)
	require.Equal(t, "a", f.end.Provider)
}

func TestMove(t *testing.T) {
	t.Parallel()
	f := newTestRoute("a", "b")
	f.place = place{seq: 7, known: true, lostAt: t0, askedAt: t0}
	f.heard(epoch0run1, t0)
	now := t0.Add(time.Second)
	for name, to := range map[string]queue.Place{"nowhere": {}, "no candidates": {Seq: 3}, "no place": inQueue(0, "b")} {
		f.move(passed1run1, to, now)
		require.Equal(t, "a", f.at().Provider, name)
	}
	f.move(queue.Run{Epoch: 1}, inQueue(3, "b"), now)
	require.Equal(t, "b", f.at().Provider)
	require.Equal(t, place{seq: 3, known: true, sent: now, firstSent: now}, f.place)
	require.Equal(t, queue.Run{Epoch: 1}, f.run)
	require.False(t, f.held, "whoever had it has given it up")
	require.Equal(t, 1, f.job.Epoch)

	f.heard(passed1run1, now)
	f.move(queue.Run{Epoch: 1}, inQueue(3, "b"), now)
	require.Equal(t, passed1run1, f.run, "the run has begun already")
	require.True(t, f.held)
	f.move(queue.Run{Epoch: 0, Delivery: 9}, inQueue(8, "a"), now)
	require.Equal(t, "b", f.at().Provider, "an epoch is never lowered")
	require.Equal(t, 1, f.job.Epoch)
}

func TestPassed(t *testing.T) {
	t.Parallel()
	on := func(run queue.Run) *queue.Passed {
		return &queue.Passed{Run: run, Attempts: 4, Next: inQueue(9, "b", "c")}
	}
	for name, c := range map[string]struct {
		before func(f *flight)
		told   *queue.Passed
		ok     bool
		at     string // the provider afterwards
		held   bool
	}{
		"to the next":                              {func(f *flight) { f.heard(epoch0run1, t0) }, on(epoch0run1), true, "b", false},
		"by a run not heard of":                    {func(*flight) {}, on(epoch0run2), true, "b", false},
		"back to its queue":                        {func(f *flight) { f.heard(epoch0run1, t0) }, &queue.Passed{Run: epoch0run1}, true, "a", false},
		"by an earlier run":                        {func(f *flight) { f.heard(epoch0run2, t0) }, on(epoch0run1), true, "a", true},
		"after it was claimed":                     {func(f *flight) { _, _ = f.claim(queue.Claim{Run: passed1run1, Place: inQueue(9, "b", "c")}, t0) }, on(epoch0run1), true, "b", true},
		"while another answers":                    {func(f *flight) { f.events(eventsOf(epoch0run2), t0) }, on(epoch0run1), true, "a", true},
		"by another run than the one that answers": {func(f *flight) { f.events(eventsOf(epoch0run1), t0) }, on(epoch0run2), true, "a", true},
		"after it was published again": {func(f *flight) {
			f.heard(epoch0run1, t0)
			f.job.Epoch = inference.EpochStride
		}, on(epoch0run1), true, "a", false},
		"after its end":        {func(f *flight) { f.finish(&queue.End{Run: epoch0run1}, inference.OutcomeSucceeded) }, on(epoch0run1), false, "a", false},
		"after its client":     {func(f *flight) { f.leave(inference.OutcomeCancelled, errClientGone(), t0) }, on(epoch0run1), false, "a", false},
		"by one that was lost": {func(f *flight) { f.heard(epoch1run1, t0) }, on(epoch0run1), true, "a", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newTestRoute("a", "b", "c")
			c.before(f)
			epoch := f.job.Epoch
			require.Equal(t, c.ok, f.passed(c.told, t0.Add(1)))
			require.Equal(t, c.at, f.at().Provider)
			require.Equal(t, c.held, f.held)
			require.GreaterOrEqual(t, f.job.Epoch, epoch)
		})
	}
}

func anyAlive(inference.Candidate) bool { return true }

func TestSidestep(t *testing.T) {
	t.Parallel()
	f := newTestRoute("a", "b", "c", "d")
	f.candidates[1].On = inference.ReasonContextTooLong
	f.job.Epoch = inference.EpochStride
	require.True(t, f.sidestep(t0, func(c inference.Candidate) bool { return c.Provider != "c" }))
	require.Equal(t, "d", f.at().Provider, "b is for other reasons, c is not there")
	require.Equal(t, []string{"d", "b", "c"}, names(f.candidates))
	require.Equal(t, inference.EpochStride+1, f.job.Epoch)
	require.Equal(t, place{sent: t0, firstSent: t0}, f.place)
	require.Equal(t, "d", f.message().Candidates[0].Provider)
	require.Equal(t, "a", f.job.Candidates[0].Provider)
	require.True(t, f.sidestep(t0, anyAlive))
	require.Equal(t, []string{"c", "b"}, names(f.candidates))
	require.False(t, f.sidestep(t0, anyAlive))
	require.Equal(t, inference.EpochStride+2, f.job.Epoch, "where it cannot go it stays as it is")

	f = newTestFlight()
	f.job.Candidates = inQueue(0, "a", "b").Candidates
	f.place.known = true
	require.True(t, f.sidestep(t0, anyAlive))
	require.Equal(t, "b", f.at().Provider)
	require.True(t, f.place.known)
}

func names(cs []inference.Candidate) (list []string) {
	for _, c := range cs {
		list = append(list, c.Provider)
	}
	return list
}

// newTestFlights are the flights of an ingress with workers of the providers a, b and c.
func newTestFlights(t *testing.T, conn *queue.Conn) (fs *flights, rows func(jobID string) int) {
	t.Helper()
	fs = &flights{
		conn: conn, metrics: NewMetrics(prometheus.NewRegistry()), log: discard(), most: 100,
		byID: make(map[string]*flight), fullAt: make(map[string]time.Time), counts: make(map[string]int), nudge: make(chan struct{}, 1),
	}
	fs.workers = newDirectory(nil, routing.Policy{}, func() {})
	fs.workers.heard(presence("w", queue.ProviderPresence{Name: "a"}, queue.ProviderPresence{Name: "b"}, queue.ProviderPresence{Name: "c"}))
	l := &ledger{log: discard(), wake: make(chan struct{}, 1)}
	fs.ledger = l
	return fs, func(jobID string) (n int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, e := range l.waiting {
			if e.record.JobID == jobID {
				n++
			}
		}
		return n
	}
}

func TestRoomOverTheCandidates(t *testing.T) {
	t.Parallel()
	fs, _ := newTestFlights(t, nil)
	now := time.Now()
	job := testJob(false)
	job.Candidates = inQueue(0, "a", "gone", "b", "c").Candidates
	job.Candidates[3].On = inference.ReasonTimeout
	room := func() error {
		again := *job
		err := fs.room(&again, now)
		job.Candidates = again.Candidates
		return err
	}
	require.NoError(t, room())
	require.Equal(t, []string{"a", "gone", "b", "c"}, names(job.Candidates))
	fs.fullAt["a"] = now.Add(-fullFor)
	require.NoError(t, room())
	require.Equal(t, "a", job.Candidate().Provider, "that was a while ago")
	fs.fullAt["a"] = now
	require.NoError(t, room())
	require.Equal(t, []string{"b", "gone", "c"}, names(job.Candidates))
	fs.fullAt["b"] = now
	err := inference.AsError(room())
	require.Equal(t, inference.CodeQueueFull, err.Code)
	require.Equal(t, []string{"b", "gone", "c"}, names(job.Candidates))
	fs.workers.heard(presence("w2", queue.ProviderPresence{Name: "gone"}))
	require.NoError(t, room())
	require.Equal(t, "gone", job.Candidate().Provider)

	fs.fullAt["gone"] = now
	job.Candidates = inQueue(0, "a", "b", "gone", "c").Candidates
	require.NoError(t, room())
	require.Equal(t, []string{"c"}, names(job.Candidates), "one after the other")

	fs.most = 0
	require.Equal(t, inference.AsError(errBusy()).Code, inference.AsError(room()).Code)
}

// flying puts a flight among the others, as open does.
func (fs *flights) flying(f *flight) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.byID[f.job.ID] = f
	f.counted = f.job.Candidate().Provider
	fs.counts[f.counted]++
	return f
}

func TestLoadFollowsTheJobs(t *testing.T) {
	t.Parallel()
	fs, _ := newTestFlights(t, nil)
	f, g := fs.flying(newTestRoute("a", "b")), fs.flying(newTestRoute("a", "c"))
	f.opened, g.opened = true, true
	load := func(a, b, c int) {
		t.Helper()
		require.Equal(t, []int{a, b, c}, []int{fs.load("a"), fs.load("b"), fs.load("c")})
	}
	load(2, 0, 0)
	fs.Passed(&queue.Passed{JobID: f.job.ID, Run: epoch0run1, Next: inQueue(4, "b")})
	load(1, 1, 0)
	fs.Passed(&queue.Passed{JobID: f.job.ID, Run: epoch0run1, Next: inQueue(4, "b")})
	load(1, 1, 0)
	require.Equal(t, queue.VerdictRun, fs.Claimed(queue.Claim{JobID: g.job.ID, Run: passed1run1, Place: inQueue(5, "c")}).Verdict)
	load(0, 1, 1)
	require.Equal(t, queue.VerdictDrop, fs.Claimed(queue.Claim{JobID: g.job.ID, Run: epoch0run2, Place: inQueue(5, "a")}).Verdict)
	load(0, 1, 1)
	fs.remove([]string{f.job.ID, "unknown"})
	fs.remove([]string{f.job.ID})
	fs.recount(f)
	load(0, 0, 1)
	fs.remove([]string{g.job.ID})
	require.Empty(t, fs.counts)
	require.Zero(t, fs.load("a"))
}

// Whatever workers say, and in whatever order: one run is shown to the client, a flight
// ends once, and the load is what the flights are.
func TestNothingThatIsSaidConfusesAFlight(t *testing.T) {
	t.Parallel()
	r := setup(t)
	require.NoError(t, r.conn.EnsureShared(t.Context()))
	fs, rows := newTestFlights(t, r.conn)
	var err error
	fs.dispatch, err = r.conn.NewDispatcher("ingressa", fs)
	require.NoError(t, err)
	defer fs.dispatch.Close()
	epochs := []int{0, 0, 1, 1, 2, inference.EpochStride, inference.EpochStride + 1, 2 * inference.EpochStride}
	providers := []string{"a", "b", "c"}
	for n := range 400 {
		seed := uint64(n)
		rnd := rand.New(rand.NewPCG(seed, seed))
		f := newTestRoute("a", "b", "c")
		f.accepted = time.Now()
		f.feed = newFeed(fs.conn.NewKeptReader(f.job.ID), queue.Run{}, 1)
		fs.flying(f)
		id := f.job.ID
		said, shown, sent := "", make(map[string]bool), make(map[queue.Run]uint64)
		for range 40 {
			run := queue.Run{Epoch: epochs[rnd.IntN(len(epochs))], Delivery: 1 + rnd.IntN(3)}
			rnd.Shuffle(3, func(i, j int) { providers[i], providers[j] = providers[j], providers[i] })
			to := inQueue(uint64(rnd.IntN(4)), providers[:1+rnd.IntN(3)]...)
			epoch, begun, was, ended := f.job.Epoch, f.begun, f.run, f.ended
			op := rnd.IntN(20)
			switch {
			case op < 6:
				c := queue.Claim{JobID: id, Run: run, Worker: "w", Place: to}
				if v := fs.Claimed(c).Verdict; v == queue.VerdictRun {
					require.False(t, ended, "%d:%s", seed, said)
					require.False(t, begun && run != was, "seed %d: another run after a chunk:%s", seed, said)
				}
			case op < 9:
				fs.Held(&queue.Held{Worker: "w", Jobs: []queue.HeldJob{{JobID: id, Run: run}}})
			case op < 12:
				if _, known := sent[run]; !known {
					sent[run] = 1
				}
				fs.Events(&queue.Events{JobID: id, Run: run, Worker: "w", FirstSeq: sent[run], Chunks: [][]byte{fmt.Appendf(nil, "%v", run)}})
				sent[run]++
			case op < 14:
				p := &queue.Passed{JobID: id, Run: run, Worker: "w", Attempts: rnd.IntN(5)}
				if rnd.IntN(2) == 0 {
					p.Next = to
				}
				fs.Passed(p)
			case op == 14:
				f.mu.Lock()
				f.heardAt = f.heardAt.Add(-aliveFor)
				f.mu.Unlock()
			case op == 15:
				fs.Published(id, run.Epoch, to.Seq, nil)
			case op == 16:
				fs.Published(id, run.Epoch, 0, queue.ErrFull)
			case op == 17:
				f.mu.Lock()
				f.place.lostAt = time.Now().Add(-time.Minute)
				f.mu.Unlock()
				fs.lookAfter(f, time.Now(), time.Time{})
			case op == 18 && rnd.IntN(4) == 0:
				fs.leave(f, inference.OutcomeCancelled, errClientGone())
			case op == 19 && rnd.IntN(2) == 0:
				e := &queue.End{JobID: id, Run: run, Worker: "w", LastSeq: max(sent[run], 1) - 1}
				if rnd.IntN(2) == 0 {
					e.Err = &inference.Error{Code: inference.CodeUpstreamError}
				}
				fs.Ended(e)
			default:
				continue
			}
			said = fmt.Sprintf("%s [%d %v %v]", said, op, run, to)
			if b, _ := f.feed.ready(); len(b.Chunks) > 0 {
				for _, c := range b.Chunks {
					shown[string(c)] = true
				}
			}
			require.LessOrEqual(t, len(shown), 1, "seed %d: more than one run was shown:%s", seed, said)
			require.GreaterOrEqual(t, f.job.Epoch, epoch, "seed %d:%s", seed, said)
			require.False(t, f.run.Before(was), "seed %d: the run went back from %v to %v:%s", seed, was, f.run, said)
			require.LessOrEqual(t, rows(id), 1, "seed %d:%s", seed, said)
			require.Equal(t, f.ended && f.outcome != inference.OutcomeRejected, rows(id) == 1, "seed %d:%s", seed, said)
			if fs.find(id) != nil {
				require.Equal(t, map[string]int{f.at().Provider: 1}, fs.counts, "seed %d:%s", seed, said)
			} else {
				require.Empty(t, fs.counts)
			}
		}
		fs.end(f, errDeadline(f.job))
		fs.closeUnheard(f) // the row of one that was left before
		require.True(t, f.ended)
		require.True(t, isDone(f))
		fs.remove([]string{id})
		require.Empty(t, fs.counts)
	}
	fs.side.Wait()
}

// A worker's word that comes after its client went: nobody needs the message any more.
func TestAJobPassedOnTooLateIsTakenOutOfItsNewQueue(t *testing.T) {
	t.Parallel()
	r := setup(t, func(o *Options) { o.Settings.Providers["next"] = ProviderInfo{Models: []string{"m"}, MaxQueued: 4} })
	r.work()
	c := r.chat(plainRequest)
	k := r.take()
	require.NoError(t, r.answer.Hold([]queue.HeldJob{{JobID: k.job.ID, Run: k.run}}))
	_, err := r.conn.EnsureQueue(t.Context(), "next", 4)
	require.NoError(t, err)
	require.NoError(t, r.conn.EnsureConsumer(t.Context(), "next", 4))
	heard := make(chan string, 10)
	next2, err := r.conn.NewAnswerer("worker02", []string{"next"}, cancels(heard))
	require.NoError(t, err)
	defer next2.Close()

	c.cancel()
	require.Equal(t, k.job.ID, next(t, r.cancelled))
	on := *k.job
	on.Epoch++
	on.Candidates = []inference.Candidate{{Provider: "next", Model: "m"}}
	seq, err := r.answer.Forward(t.Context(), &on, "")
	require.NoError(t, err)
	require.NoError(t, r.answer.Passed(&queue.Passed{JobID: k.job.ID, Run: k.run, Worker: "worker01", Attempts: 1, Next: queue.Place{Candidates: on.Candidates, Seq: seq}}))
	require.Equal(t, k.job.ID, next(t, heard))
	require.Eventually(t, func() bool {
		d, err := r.conn.Depth(t.Context(), "next")
		return err == nil && d == queue.Depth{}
	}, soon, 5*time.Millisecond)
	require.Equal(t, inference.OutcomeCancelled, r.row(k.job.ID).Outcome)
}

type cancels chan string

func (c cancels) Settled([]string) {}

func (c cancels) Cancelled(ids []string) { sendAll(c, ids) }

// A full queue's job goes to the next candidate's, and its load with it.
func TestAJobWhoseQueueIsFullGoesToTheNext(t *testing.T) {
	t.Parallel()
	r := setup(t, func(o *Options) {
		o.Settings.Providers["acme"] = ProviderInfo{Models: []string{"m"}, MaxQueued: 4}
		o.Settings.Providers["next"] = ProviderInfo{Models: []string{"m"}, MaxQueued: 4}
		o.Settings.Policy.Order = []string{"acme", "next"}
	})
	r.work()
	require.NoError(t, r.conn.Announce(queue.Presence{Worker: "worker02", Providers: []queue.ProviderPresence{{Name: "next", MaxQueued: 4, Slots: 4}}}))
	fs := r.ingress.flights
	require.Eventually(t, func() bool { return fs.workers.alive(inference.Candidate{Provider: "next"}) }, soon, time.Millisecond)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	open := func() *flight {
		job := testJob(false)
		job.ID = queue.NewJobID(r.ingress.opt.ID, time.Now())
		job.CreatedAt, job.Deadline = time.Now(), time.Now().Add(soon)
		job.Candidates = inQueue(0, "acme", "next").Candidates
		f, err := fs.open(ctx, admission{settings: new(Settings), job: job, memory: &share{of: &fs.bodies}})
		require.NoError(t, err)
		return f
	}
	var all []*flight
	for range 4 {
		all = append(all, open())
		require.Equal(t, all[len(all)-1].job.ID, r.take().job.ID)
	}
	second := open()
	all = append(all, second)
	require.Eventually(t, func() bool { return fs.load("next") == 1 }, soon, time.Millisecond)
	require.Equal(t, 4, fs.load("acme"))
	require.Equal(t, "next", second.provider())

	came := make(chan *queue.Delivery, 1)
	require.NoError(t, r.conn.EnsureConsumer(t.Context(), "next", 4))
	p, err := r.conn.NewPuller("next", inference.LaneInteractive, 1, func(d *queue.Delivery) { came <- d }, nil)
	require.NoError(t, err)
	defer p.Stop()
	d := next(t, came)
	job, _, err := d.Job()
	require.NoError(t, err)
	require.Equal(t, second.job.ID, job.ID)
	require.Equal(t, 1, job.Epoch)
	require.Equal(t, []string{"next"}, names(job.Candidates))
	judged, err := r.answer.Claim(t.Context(), queue.Claim{JobID: job.ID, Run: passed1run1, Worker: "worker02", Place: queue.Place{Candidates: job.Candidates, Seq: d.Seq}})
	require.NoError(t, err)
	require.Equal(t, queue.VerdictRun, judged.Verdict)
	for _, f := range all {
		fs.leave(f, inference.OutcomeCancelled, errClientGone())
	}
	require.Eventually(t, func() bool { return fs.count() == 0 }, soon, 5*time.Millisecond)
	require.Zero(t, fs.load("acme")+fs.load("next"))
}
