package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/store"
)

// stride is the first epoch of the second family.
const stride = inference.EpochStride

// dispatch marks a job as dispatched and requires that to be of use.
func dispatch(t *testing.T, s store.Store, id string, epoch int, at time.Time) {
	t.Helper()
	require.Empty(t, mark(t, s, at, store.Dispatch{ID: id, Epoch: epoch, Provider: "openai", Seq: 7}))
}

func mark(t *testing.T, s store.Store, at time.Time, sent ...store.Dispatch) (useless []string) {
	t.Helper()
	useless, err := s.MarkDispatched(t.Context(), sent, at)
	require.NoError(t, err)
	return useless
}

func claim(t *testing.T, s store.Store, id string, epoch int, at time.Time) store.Claimed {
	t.Helper()
	claimed, err := s.ClaimJob(t.Context(), id, epoch, at)
	require.NoError(t, err)
	return claimed
}

// start claims a job and requires it to be wanted.
func start(t *testing.T, s store.Store, id string, epoch int, at time.Time) {
	t.Helper()
	require.True(t, claim(t, s, id, epoch, at).Wanted)
}

func dispatchedBefore(t *testing.T, s store.Store, before time.Time) []store.Job {
	t.Helper()
	jobs, err := s.Dispatched(t.Context(), before, store.MaxMarks)
	require.NoError(t, err)
	return jobs
}

func requeue(t *testing.T, s store.Store, requeued ...store.Requeue) (changed []string) {
	t.Helper()
	changed, err := s.Requeue(t.Context(), requeued)
	require.NoError(t, err)
	return changed
}

func move(t *testing.T, s store.Store, id string, epoch int, at time.Time) {
	t.Helper()
	require.NoError(t, s.MoveJob(t.Context(), id, epoch, "azure\x00", 9, 2, newRecord("").Tries, at))
}

var markTests = map[string]func(*testing.T, Open){
	"where messages are is said of many jobs at once": func(t *testing.T, open Open) {
		s := migrated(t, open)
		ended, fenced := jobAt("ended", "acme", noon), jobAt("fenced", "acme", noon)
		fenced.Epoch = stride
		createJobs(t, s, jobAt("a", "acme", noon), jobAt("b", "acme", noon), jobAt("behind", "acme", noon), ended, fenced)
		leaseAt(t, s, noon, 10)
		_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("ended")})
		require.NoError(t, err)
		before := []store.Job{job(t, s, "behind"), job(t, s, "ended"), job(t, s, "fenced")}
		useless := mark(t, s, noon.Add(time.Second),
			store.Dispatch{ID: "nobody's"}, store.Dispatch{ID: "behind", Epoch: 1, Provider: "slow"}, store.Dispatch{ID: "fenced", Epoch: 5, Provider: "slow", Seq: 4},
			store.Dispatch{ID: "b", Provider: "azure\x00", Seq: 1 << 62}, store.Dispatch{ID: "b", Provider: "twice"},
			store.Dispatch{ID: "ended", Provider: "slow"}, store.Dispatch{ID: "a", Provider: "openai", Seq: 1})
		require.Equal(t, []string{"behind", "ended", "fenced", "nobody's"}, useless)
		for _, want := range before {
			require.Equal(t, want, job(t, s, want.ID))
		}
		a, b := job(t, s, "a"), job(t, s, "b")
		require.Equal(t, "openai", a.Provider)
		require.EqualValues(t, 1, a.Seq)
		require.Equal(t, "azure", b.Provider)
		require.EqualValues(t, 1<<62, b.Seq)
		require.Equal(t, noon.Add(time.Second), b.DispatchedAt)
		require.True(t, a.LeasedUntil.IsZero())
		require.True(t, b.LeasedUntil.IsZero())
		require.Empty(t, mark(t, s, noon))
	},

	"a message that was passed on before its publisher says where it was had its use": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("job-1", "acme", noon))
		leaseAt(t, s, noon, 10)
		move(t, s, "job-1", 1, noon.Add(time.Second))
		want := job(t, s, "job-1")
		dispatch(t, s, "job-1", 0, noon.Add(2*time.Second))
		require.Equal(t, want, job(t, s, "job-1"))
	},

	"a worker claims a job, and it has started": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("job-1", "acme", noon))
		leaseAt(t, s, noon, 10)
		require.Equal(t, store.Claimed{Wanted: true}, claim(t, s, "job-1", 0, noon.Add(time.Second)), "before its publisher says where the message is")
		dispatch(t, s, "job-1", 0, noon)
		start(t, s, "job-1", 1, noon.Add(time.Minute)) // passed on by a worker
		got := job(t, s, "job-1")
		require.Equal(t, store.JobInProgress, got.Status)
		require.Equal(t, noon.Add(time.Second), got.StartedAt)
		require.Equal(t, "openai", got.Provider)
		require.Zero(t, got.Epoch)
		require.Empty(t, leaseAt(t, s, noon.Add(time.Hour), 10), "it has a message")
	},

	"a worker learns what was tried before it": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("job-1", "acme", noon))
		tries := newRecord("").Tries
		requeue(t, s, store.Requeue{ID: "job-1", Attempts: 2, Tries: tries})
		require.Equal(t, store.Claimed{Wanted: true, Attempts: 2, Tries: tries}, claim(t, s, "job-1", stride, noon))
	},

	"what a worker is not to do": func(t *testing.T, open Open) {
		s := migrated(t, open)
		later, moved := jobAt("later", "acme", noon), jobAt("moved", "acme", noon)
		later.Epoch, moved.Epoch = 2*stride, stride+1
		createJobs(t, s, later, moved, jobAt("ended", "acme", noon))
		_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("ended")})
		require.NoError(t, err)
		ended := job(t, s, "ended")
		for name, c := range map[string]struct {
			id    string
			epoch int
		}{
			"a job that ended":               {"ended", 0},
			"a job that is not there":        {"nobody's\x00", 0},
			"a message of an earlier family": {"later", 2*stride - 1},
			"a message of a later family":    {"later", 3 * stride},
			"a message that was passed on":   {"moved", stride},
		} {
			require.Equal(t, store.Claimed{}, claim(t, s, c.id, c.epoch, noon), name)
		}
		require.Equal(t, later, job(t, s, "later"))
		require.Equal(t, moved, job(t, s, "moved"))
		require.Equal(t, ended, job(t, s, "ended"))
		start(t, s, "moved", stride+1, noon)
		start(t, s, "later", 3*stride-1, noon)
	},

	"a job that was passed on is where the worker says": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("job-1", "acme", noon))
		leaseAt(t, s, noon, 10)
		dispatch(t, s, "job-1", 0, noon)
		want := job(t, s, "job-1")
		move(t, s, "job-1", 2, noon.Add(time.Second))
		want.Epoch, want.Provider, want.Seq, want.DispatchedAt = 2, "azure", 9, noon.Add(time.Second)
		want.Attempts, want.Tries = 2, newRecord("").Tries
		require.Equal(t, want, job(t, s, "job-1"))
		move(t, s, "job-1", 1, noon.Add(time.Minute))
		require.Equal(t, want, job(t, s, "job-1"), "an older epoch")

		_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("job-1")})
		require.NoError(t, err)
		want = job(t, s, "job-1")
		move(t, s, "job-1", 3, noon.Add(time.Minute))
		move(t, s, "nobody's", 0, noon)
		require.Equal(t, want, job(t, s, "job-1"), "a finished job")
	},

	"what has not been heard of for long is found, longest ago first": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("waits", "acme", noon), jobAt("a", "acme", noon), jobAt("b", "other", noon),
			jobAt("c", "acme", noon), jobAt("d", "acme", noon), jobAt("ended", "acme", noon))
		for i, id := range []string{"c", "a", "ended", "b", "d"} {
			dispatch(t, s, id, 0, noon.Add(time.Duration(i)*time.Minute))
		}
		start(t, s, "a", 0, noon.Add(time.Hour))
		_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("ended")})
		require.NoError(t, err)
		got := dispatchedBefore(t, s, noon.Add(4*time.Minute))
		require.Equal(t, []string{"c", "a", "b"}, jobIDs(got))
		require.Equal(t, withoutBodies(job(t, s, "a")), got[1])

		require.NoError(t, s.Confirm(t.Context(), []string{"b", "c", "c", "ended", "waits", "nobody's\x00"}, noon.Add(time.Hour)))
		require.Equal(t, []string{"a", "d", "b", "c"}, jobIDs(dispatchedBefore(t, s, noon.Add(2*time.Hour))))
		require.NoError(t, s.Confirm(t.Context(), []string{"c"}, noon))
		require.Equal(t, noon.Add(time.Hour), job(t, s, "c").DispatchedAt, "what is known already")
		require.True(t, job(t, s, "waits").DispatchedAt.IsZero(), "a job without a message")
		for limit, want := range map[int]int{0: 0, -1: 0, 2: 2, 1 << 30: 4} {
			jobs, err := s.Dispatched(t.Context(), noon.Add(2*time.Hour), limit)
			require.NoError(t, err)
			require.Len(t, jobs, want)
		}
	},

	"a job whose message is no more gets another, not before its time": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("job-1", "acme", noon))
		leaseAt(t, s, noon, 10)
		dispatch(t, s, "job-1", 0, noon)
		start(t, s, "job-1", 0, noon)
		want := job(t, s, "job-1")
		r := store.Requeue{ID: "job-1", Epoch: 1, NotBefore: noon.Add(time.Minute), Attempts: 3, Tries: newRecord("").Tries}
		requeue(t, s, r, store.Requeue{ID: "nobody's"})
		want.Epoch, want.DispatchedAt, want.NotBefore = stride, time.Time{}, r.NotBefore
		want.Attempts, want.Tries = 3, r.Tries
		require.Equal(t, want, job(t, s, "job-1"))
		require.Empty(t, leaseAt(t, s, noon.Add(time.Minute-time.Microsecond), 10))
		got := leaseAt(t, s, noon.Add(time.Minute), 10)
		want.LeasedUntil = noon.Add(time.Minute + lease)
		require.Equal(t, []store.Job{want}, got)

		r.NotBefore = time.Time{}
		requeue(t, s, r)
		move(t, s, "job-1", 1, noon)
		require.False(t, claim(t, s, "job-1", 1, noon).Wanted, "the message that turned up again")
		require.Equal(t, want, job(t, s, "job-1"), "said again, or too late")
		requeue(t, s, store.Requeue{ID: "job-1", Epoch: stride})
		got = leaseAt(t, s, noon, 10)
		require.Len(t, got, 1)
		require.Equal(t, 2*stride, got[0].Epoch)
		require.True(t, got[0].NotBefore.IsZero())

		requeue(t, s, store.Requeue{ID: "job-1", Epoch: 2 * stride, Unsent: true})
		got = leaseAt(t, s, noon, 10)
		require.Len(t, got, 1)
		require.Equal(t, 2*stride, got[0].Epoch, "no message of that epoch was ever sent")

		_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("job-1")})
		require.NoError(t, err)
		want = job(t, s, "job-1")
		require.Empty(t, requeue(t, s, store.Requeue{ID: "job-1", Epoch: 2 * stride}))
		require.Equal(t, want, job(t, s, "job-1"), "a finished job")
	},

	"a call has a bound": func(t *testing.T, open Open) {
		s := migrated(t, open)
		const over = store.MaxMarks + 1
		_, err := s.MarkDispatched(t.Context(), make([]store.Dispatch, over), noon)
		require.ErrorIs(t, err, store.ErrInvalid)
		require.ErrorIs(t, s.Confirm(t.Context(), make([]string, over), noon), store.ErrInvalid)
		_, err = s.Requeue(t.Context(), make([]store.Requeue, over))
		require.ErrorIs(t, err, store.ErrInvalid)

		var sent []store.Dispatch
		var ids []string
		for i := range store.MaxMarks {
			ids = append(ids, fmt.Sprint(i))
			sent = append(sent, store.Dispatch{ID: ids[i]})
		}
		require.Len(t, mark(t, s, noon, sent...), store.MaxMarks)
		require.NoError(t, s.Confirm(t.Context(), ids, noon))
		require.NoError(t, s.Confirm(t.Context(), nil, noon))
		requeue(t, s)
	},
}
