package storetest

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"sluice/store"
)

// keep is how long these tests keep a key.
const keep = time.Hour

// request returns acme's request with the key "order-1", of one owner.
func request(owner string) store.IdempotentRequest {
	return store.IdempotentRequest{
		Tenant: "acme", KeyID: "key-1", Key: "order-1", Hash: sha256.Sum256([]byte("body")),
		Owner: owner, JobID: "job-of-" + owner,
	}
}

func begin(t *testing.T, s store.Store, r store.IdempotentRequest, now time.Time) store.IdempotentState {
	t.Helper()
	state, err := s.BeginIdempotent(t.Context(), r, now, lease, keep)
	require.NoError(t, err)
	return state
}

// isNew is the state of a request that nobody made before.
var isNew = store.IdempotentState{Outcome: store.IdempotentNew}

func newAnswer() store.IdempotentAnswer {
	return store.IdempotentAnswer{
		Status: 200, Header: map[string]string{"content-type": "application/json", "x-long": strings.Repeat("é", 1000)},
		Body: []byte("\x00\xff{}"), JobID: "job-1",
	}
}

var idempotencyTests = map[string]func(*testing.T, Open){
	"a key is new once, and then in flight": func(t *testing.T, open Open) {
		s := migrated(t, open)
		require.Equal(t, isNew, begin(t, s, request("a"), noon))
		want := store.IdempotentState{Outcome: store.IdempotentInFlight, JobID: "job-of-a", LeasedUntil: noon.Add(lease)}
		require.Equal(t, want, begin(t, open(), request("b"), noon))
		require.Equal(t, want, begin(t, s, request("b"), noon.Add(lease-time.Microsecond)))
		require.Equal(t, isNew, begin(t, s, request("a"), noon.Add(time.Second)), "a repeated call of the owner's")
	},

	"a finished key gives its answer": func(t *testing.T, open Open) {
		s := migrated(t, open)
		begin(t, s, request("a"), noon)
		require.NoError(t, s.FinishIdempotent(t.Context(), "acme", "order-1", "a", newAnswer()))
		want := store.IdempotentState{Outcome: store.IdempotentDone, JobID: "job-1", Answer: newAnswer()}
		require.Equal(t, want, begin(t, s, request("b"), noon))
		require.Equal(t, want, begin(t, s, request("a"), noon.Add(keep-time.Microsecond)), "long after the lease")

		require.ErrorIs(t, s.FinishIdempotent(t.Context(), "acme", "order-1", "a", store.IdempotentAnswer{}), store.ErrNotFound)
		require.ErrorIs(t, s.DropIdempotent(t.Context(), "acme", "order-1", "a"), store.ErrNotFound)
		require.ErrorIs(t, s.RenewIdempotent(t.Context(), "acme", "order-1", "a", noon), store.ErrNotFound)
		require.Equal(t, want, begin(t, s, request("b"), noon), "the answer stays")
	},

	"a bare answer comes back bare": func(t *testing.T, open Open) {
		s := migrated(t, open)
		begin(t, s, request("a"), noon)
		want := store.IdempotentAnswer{Status: 204}
		require.NoError(t, s.FinishIdempotent(t.Context(), "acme", "order-1", "a", want))
		require.Equal(t, want, begin(t, s, request("b"), noon).Answer)
	},

	"another request with the key is a conflict, in flight, lost or done": func(t *testing.T, open Open) {
		s := migrated(t, open)
		begin(t, s, request("a"), noon)
		other := request("b")
		other.Hash[31]++
		conflict := func(now time.Time) {
			_, err := s.BeginIdempotent(t.Context(), other, now, lease, keep)
			require.ErrorIs(t, err, store.ErrConflict)
		}
		conflict(noon)
		conflict(noon.Add(lease))
		require.NoError(t, s.FinishIdempotent(t.Context(), "acme", "order-1", "a", newAnswer()))
		conflict(noon)
		require.Equal(t, isNew, begin(t, s, other, noon.Add(keep)), "until it is no longer kept")
	},

	"a key belongs to its tenant": func(t *testing.T, open Open) {
		s := migrated(t, open)
		begin(t, s, request("a"), noon)
		theirs, another := request("b"), request("b")
		theirs.Tenant, another.Key = "other", "order-2"
		require.Equal(t, isNew, begin(t, s, theirs, noon))
		require.Equal(t, isNew, begin(t, s, another, noon))
		require.NoError(t, s.DropIdempotent(t.Context(), "other", "order-1", "b"))
		require.Equal(t, store.IdempotentInFlight, begin(t, s, request("c"), noon).Outcome)
	},

	"a lease that ran out passes to the next caller": func(t *testing.T, open Open) {
		s := migrated(t, open)
		begin(t, s, request("a"), noon)
		state := begin(t, s, request("b"), noon.Add(lease))
		require.Equal(t, store.IdempotentState{Outcome: store.IdempotentNew, JobID: "job-of-a"}, state, "and says whose it was")
		require.Equal(t, store.IdempotentState{
			Outcome: store.IdempotentInFlight, JobID: "job-of-b", LeasedUntil: noon.Add(2 * lease),
		}, begin(t, s, request("a"), noon.Add(lease)))

		require.ErrorIs(t, s.RenewIdempotent(t.Context(), "acme", "order-1", "a", noon.Add(keep)), store.ErrNotFound)
		require.ErrorIs(t, s.FinishIdempotent(t.Context(), "acme", "order-1", "a", newAnswer()), store.ErrNotFound)
		require.ErrorIs(t, s.DropIdempotent(t.Context(), "acme", "order-1", "a"), store.ErrNotFound)
		require.NoError(t, s.FinishIdempotent(t.Context(), "acme", "order-1", "b", newAnswer()))
	},

	"a request that inherits becomes the job of who was lost first": func(t *testing.T, open Open) {
		s := migrated(t, open)
		heir := func(owner string) store.IdempotentRequest {
			r := request(owner)
			r.Inherits = true
			return r
		}
		lost := store.IdempotentState{Outcome: store.IdempotentNew, JobID: "job-of-a"}
		require.Equal(t, isNew, begin(t, s, heir("a"), noon))
		require.Equal(t, isNew, begin(t, s, heir("a"), noon), "a repeated call of the owner's inherits nothing")
		require.Equal(t, lost, begin(t, s, heir("b"), noon.Add(lease)))
		require.Equal(t, lost, begin(t, s, heir("b"), noon.Add(lease)), "nor does one lose what it has inherited")
		require.Equal(t, "job-of-a", begin(t, s, heir("c"), noon.Add(lease)).JobID, "in flight")
		require.Equal(t, lost, begin(t, s, heir("c"), noon.Add(2*lease)), "two were lost")

		require.NoError(t, s.RenewIdempotent(t.Context(), "acme", "order-1", "c", noon.Add(2*lease)))
		require.Equal(t, lost, begin(t, s, heir("d"), noon.Add(2*lease)), "a lease that its owner ended")
		require.Equal(t, isNew, begin(t, s, heir("e"), noon.Add(2*lease+keep)), "what is no longer kept is nobody's")
	},

	"a lease is renewed by its owner": func(t *testing.T, open Open) {
		s := migrated(t, open)
		begin(t, s, request("a"), noon)
		require.NoError(t, s.RenewIdempotent(t.Context(), "acme", "order-1", "a", noon.Add(3*lease)))
		state := begin(t, s, request("b"), noon.Add(2*lease))
		require.Equal(t, store.IdempotentInFlight, state.Outcome)
		require.Equal(t, noon.Add(3*lease), state.LeasedUntil)
		require.ErrorIs(t, s.RenewIdempotent(t.Context(), "acme", "order-2", "a", noon), store.ErrNotFound)
		require.ErrorIs(t, s.RenewIdempotent(t.Context(), "acme", "order-1\x00", "\xff", noon), store.ErrNotFound)
	},

	"a dropped key is free again, for any request": func(t *testing.T, open Open) {
		s := migrated(t, open)
		begin(t, s, request("a"), noon)
		require.NoError(t, s.DropIdempotent(t.Context(), "acme", "order-1", "a"))
		other := request("b")
		other.Hash[0]++
		require.Equal(t, isNew, begin(t, s, other, noon))
		require.ErrorIs(t, s.DropIdempotent(t.Context(), "acme", "order-1", "a"), store.ErrNotFound)
	},

	"a key that is no longer kept is new": func(t *testing.T, open Open) {
		s := migrated(t, open)
		begin(t, s, request("a"), noon)
		require.NoError(t, s.FinishIdempotent(t.Context(), "acme", "order-1", "a", newAnswer()))
		require.Equal(t, isNew, begin(t, s, request("b"), noon.Add(keep)))
		require.NoError(t, s.FinishIdempotent(t.Context(), "acme", "order-1", "b", store.IdempotentAnswer{Status: 204}))
		state := begin(t, s, request("c"), noon.Add(keep))
		require.Equal(t, store.IdempotentAnswer{Status: 204}, state.Answer, "nothing is left of the old one")
	},

	"a key whose owner is at it is kept however long that takes": func(t *testing.T, open Open) {
		s := migrated(t, open)
		begin(t, s, request("a"), noon)
		require.NoError(t, s.RenewIdempotent(t.Context(), "acme", "order-1", "a", noon.Add(2*keep)))
		removed, err := s.PurgeIdempotent(t.Context(), noon.Add(keep), 10)
		require.NoError(t, err)
		require.Zero(t, removed)
		require.Equal(t, store.IdempotentInFlight, begin(t, s, request("b"), noon.Add(keep)).Outcome)
		require.NoError(t, s.FinishIdempotent(t.Context(), "acme", "order-1", "a", newAnswer()))
	},

	"keys that are no longer kept are removed": purgeKeys,

	"what cannot be remembered is refused": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for name, change := range map[string]func(*store.IdempotentRequest){
			"no tenant":      func(r *store.IdempotentRequest) { r.Tenant = "" },
			"no key":         func(r *store.IdempotentRequest) { r.Key = "" },
			"key too long":   func(r *store.IdempotentRequest) { r.Key = strings.Repeat("k", store.MaxIdempotencyKeyBytes+1) },
			"key not text":   func(r *store.IdempotentRequest) { r.Key = "a\x00" },
			"no owner":       func(r *store.IdempotentRequest) { r.Owner = "" },
			"job not a text": func(r *store.IdempotentRequest) { r.JobID = "\xff" },
		} {
			r := request("a")
			change(&r)
			_, err := s.BeginIdempotent(t.Context(), r, noon, lease, keep)
			require.ErrorIs(t, err, store.ErrInvalid, name)
		}
		longest := request("a")
		longest.Key = strings.Repeat("k", store.MaxIdempotencyKeyBytes)
		require.Equal(t, isNew, begin(t, s, longest, noon))
		for name, answer := range map[string]store.IdempotentAnswer{
			"body too long":   {Body: make([]byte, store.MaxAnswerBytes+1)},
			"job not text":    {JobID: "a\x00"},
			"header too long": {Header: map[string]string{"x": strings.Repeat("x", store.MaxAnswerHeaderBytes)}},
		} {
			err := s.FinishIdempotent(t.Context(), "acme", longest.Key, "a", answer)
			require.ErrorIs(t, err, store.ErrInvalid, name)
		}
		require.NoError(t, s.DropIdempotent(t.Context(), "acme", longest.Key, "a"), "it is as it was")
	},

	"of callers at one time one finds the key new": func(t *testing.T, open Open) {
		s := migrated(t, open)
		race(t, s, open, noon)
		race(t, s, open, noon.Add(lease)) // and one takes over what the first one lost
		require.Equal(t, store.IdempotentInFlight, begin(t, s, request("late"), noon.Add(lease)).Outcome)
	},
}

// race has many callers ask for one key at one time, and requires one alone to get it, and
// the others to hear of that one.
func race(t *testing.T, s store.Store, open Open, now time.Time) {
	t.Helper()
	const callers = 16
	stores := []store.Store{s, open(), open()}
	for _, s := range stores {
		require.NoError(t, s.Ping(t.Context()))
	}
	states := make([]store.IdempotentState, callers)
	group, ctx := errgroup.WithContext(t.Context())
	start := make(chan struct{})
	name := func(i int) string { return fmt.Sprintf("%d-%d", now.Unix(), i) }
	for i := range callers {
		group.Go(func() (err error) {
			<-start
			states[i], err = stores[i%len(stores)].BeginIdempotent(ctx, request(name(i)), now, lease, keep)
			return err
		})
	}
	close(start)
	require.NoError(t, group.Wait())
	winner := -1
	for i, state := range states {
		if state.Outcome == store.IdempotentNew {
			require.Equal(t, -1, winner, "two callers got the key")
			winner = i
		}
	}
	require.NotEqual(t, -1, winner, "nobody got the key")
	for i, state := range states {
		if i != winner {
			require.Equal(t, store.IdempotentInFlight, state.Outcome)
			require.Equal(t, "job-of-"+name(winner), state.JobID)
		}
	}
}

func purgeKeys(t *testing.T, open Open) {
	s := migrated(t, open)
	for i := range 5 {
		r := request("a")
		r.Key = fmt.Sprintf("order-%d", i)
		begin(t, s, r, noon.Add(time.Duration(i)*time.Minute))
		if i%2 == 0 {
			require.NoError(t, s.FinishIdempotent(t.Context(), "acme", r.Key, "a", newAnswer()))
		}
	}
	removedAt := func(now time.Time, limit int) int {
		removed, err := s.PurgeIdempotent(t.Context(), now, limit)
		require.NoError(t, err)
		return removed
	}
	require.Zero(t, removedAt(noon.Add(keep-time.Microsecond), 10))
	require.Zero(t, removedAt(noon.Add(2*keep), 0))
	require.Equal(t, 2, removedAt(noon.Add(keep+2*time.Minute), 2), "the limit")
	state := begin(t, s, func() store.IdempotentRequest {
		r := request("b")
		r.Key = "order-2"
		return r
	}(), noon)
	require.Equal(t, store.IdempotentDone, state.Outcome, "oldest first")
	require.Equal(t, 1, removedAt(noon.Add(keep+2*time.Minute), 10))
	require.Equal(t, 2, removedAt(noon.Add(2*keep), 1<<30))
	require.Zero(t, removedAt(noon.Add(2*keep), 10))
}
