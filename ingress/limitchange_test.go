package ingress

import (
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/apikey"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/store"
)

// changing is a rig whose one request a minute is in hand, while another one waits for its
// limit.
type changing struct {
	*rig
	keys    *keyTable
	tenants *tenantTable
	key     store.Key // of the database
	secret  string    // of it
}

// apply puts settings in force.
func (r *changing) apply(change func(*Settings)) {
	next := *r.ingress.current()
	next.StaticKeys = slices.Clone(next.StaticKeys)
	change(&next)
	r.ingress.Apply(next)
}

// oneAMinute is a limit of one request a minute, for which others wait.
var oneAMinute = limits.Limits{RequestsPerMinute: 1, OnLimit: limits.Queue}

// changeable are the places of that limit, and how it becomes another one there.
var changeable = map[string]struct {
	own    *limits.Limits         // of the key of the database
	caller func(*changing) string // the secret of who asks; nil: that key's
	begin  func(*testing.T, *Options)
	change func(*changing, limits.Limits)
}{
	"of a key of the database": {
		own: &oneAMinute,
		change: func(r *changing, to limits.Limits) {
			key := r.key
			key.Limits = &to
			r.keys.put(r.secret, key)
		},
	},
	"of a tenant of the database": {
		own: &limits.Limits{Concurrent: 100, OnLimit: limits.Queue},
		change: func(r *changing, to limits.Limits) {
			r.tenants.set(nil, store.Tenant{Name: "team", Limits: &to})
		},
	},
	"of a key of the file": {
		caller: func(r *changing) string { return r.rig.key },
		begin:  func(_ *testing.T, o *Options) { o.Settings.StaticKeys[0].Limits = &oneAMinute },
		change: func(r *changing, to limits.Limits) { r.apply(func(s *Settings) { s.StaticKeys[0].Limits = &to }) },
	},
	"of a tenant of the file": {
		own: &limits.Limits{Concurrent: 100, OnLimit: limits.Queue},
		begin: func(_ *testing.T, o *Options) {
			o.Settings.Limits.Tenants = map[string]*limits.Limits{"team": &oneAMinute}
		},
		change: func(r *changing, to limits.Limits) {
			r.apply(func(s *Settings) { s.Limits.Tenants = map[string]*limits.Limits{"team": &to} })
		},
	},
	"of an issuer": {
		caller: func(*changing) string { return jwt() },
		begin: func(t *testing.T, o *Options) {
			t.Helper()
			withTokens(t)(o)
			o.Settings.Tokens[0].Limits = &oneAMinute
		},
		change: func(r *changing, to limits.Limits) {
			r.apply(func(s *Settings) {
				s.Tokens = slices.Clone(s.Tokens)
				s.Tokens[0].Limits = &to
			})
		},
	},
	"of all keys": {
		begin:  func(_ *testing.T, o *Options) { o.Settings.Limits.Key = oneAMinute },
		change: func(r *changing, to limits.Limits) { r.apply(func(s *Settings) { s.Limits.Key = to }) },
	},
	"of a model": {
		own:   &limits.Limits{Concurrent: 100, OnLimit: limits.Queue},
		begin: func(_ *testing.T, o *Options) { o.Settings.Limits.Models = []limits.ModelLimits{ofAll(oneAMinute)} },
		change: func(r *changing, to limits.Limits) {
			r.apply(func(s *Settings) { s.Limits.Models = []limits.ModelLimits{ofAll(to)} })
		},
	},
}

func ofAll(l limits.Limits) limits.ModelLimits {
	return limits.ModelLimits{Models: []string{"*"}, RequestsPerMinute: l.RequestsPerMinute, TokensPerMinute: l.TokensPerMinute, Concurrent: l.Concurrent}
}

// Who waits has not begun: it goes by its limits as they are by now, whoever changes them.
func TestWhoWaitsGoesByChangedLimits(t *testing.T) {
	t.Parallel()
	for place, at := range changeable {
		for name, c := range map[string]struct {
			to     limits.Limits
			passes bool
		}{
			"raised":                          {limits.Limits{RequestsPerMinute: 1000, OnLimit: limits.Queue}, true},
			"removed":                         {limits.Limits{}, true},
			"another one, below what it asks": {limits.Limits{TokensPerMinute: 20, OnLimit: limits.Queue}, false},
		} {
			t.Run(place+" "+name, func(t *testing.T) {
				t.Parallel()
				count := newCounters(t)
				r := &changing{keys: new(keyTable), tenants: new(tenantTable), secret: apikey.Mint()}
				r.key = store.Key{ID: "stored", Tenant: "team", Limits: at.own}
				r.keys.put(r.secret, r.key)
				if place == "of a tenant of the database" {
					r.tenants.set(nil, store.Tenant{Name: "team", Limits: &oneAMinute})
				}
				r.rig = setup(t, func(o *Options) {
					o.Limiter, o.Keys, o.Tenants = count, r.keys, r.tenants
					if at.begin != nil {
						at.begin(t, o)
					}
				})
				r.work()
				secret := r.secret
				if at.caller != nil {
					secret = at.caller(r)
				}
				first := r.chat(capped, "Authorization", "Bearer "+secret)
				job := r.take()
				second := r.chat(capped, "Authorization", "Bearer "+secret)
				r.waiting(1)
				at.change(r, c.to)
				if c.passes {
					r.take().succeed(`{"id":"2"}`)
					_, body := second.whole()
					require.JSONEq(t, `{"id":"2"}`, body)
				} else {
					second.fails(http.StatusTooManyRequests, inference.CodeRateLimited)
				}
				r.waiting(0)
				job.succeed(`{"id":"1"}`)
				first.response()
			})
		}
	}
}

// The first of a line has been refused by a limit that is not in force any more, and asks
// again in a moment: nobody who comes meanwhile is told of that limit.
func TestNobodyIsRefusedByALimitThatWasChanged(t *testing.T) {
	t.Parallel()
	for name, to := range map[string]limits.Limits{
		"requests_per_minute": {RequestsPerMinute: 3},
		"tokens_per_minute":   {TokensPerMinute: 300},
		"concurrent":          {Concurrent: 3},
		"budget.day":          {Budget: limits.Budget{Day: 300}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := bubble(t)
				third := func(l limits.Limits) limits.Limits {
					return limits.Limits{
						RequestsPerMinute: l.RequestsPerMinute / 3, TokensPerMinute: l.TokensPerMinute / 3, Concurrent: l.Concurrent / 3,
						Budget: limits.Budget{Day: l.Budget.Day / 3},
					}
				}
				ask := func(l limits.Limits) *limited {
					q := asks(100, limits.Scope{ID: "tenant:t", Limits: l})
					q.demand.Cost = 100
					return q
				}
				_, err := l.reserve(t.Context(), ask(third(to)))
				require.NoError(t, err)
				waits := ask(third(to))
				waits.renewed = func() limits.Demand { return ask(to).demand }
				waited := make(chan error)
				go func() {
					_, err := l.enter(t.Context(), waits)
					waited <- err
				}()
				synctest.Wait()
				var r *limits.Refusal
				_, err = l.reserve(t.Context(), ask(third(to)))
				require.ErrorAs(t, err, &r, "the limit is the same")
				require.Equal(t, name, r.Limit)
				begun := time.Now()
				_, err = l.reserve(t.Context(), ask(to))
				require.NoError(t, err)
				require.NoError(t, <-waited)
				require.LessOrEqual(t, time.Since(begun), askMost)
				_, err = l.reserve(t.Context(), ask(to))
				require.ErrorAs(t, err, &r, "all three are in hand")
				require.Empty(t, l.lines.byScope)
			})
		})
	}
}

// Whoever comes passes those that wait only until the first of them has asked by the new
// limit, also if that lets it in.
func TestNobodyPassesALineWhoseLimitWasRaised(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := bubble(t)
		ask := func(most int64) *limited {
			return asks(1, limits.Scope{ID: "tenant:t", Limits: limits.Limits{RequestsPerMinute: most}})
		}
		_, err := l.reserve(t.Context(), ask(1))
		require.NoError(t, err)
		waited := make(chan error)
		for range 3 {
			waits := ask(1)
			waits.renewed = func() limits.Demand { return ask(3).demand }
			go func() {
				_, err := l.enter(t.Context(), waits)
				waited <- err
			}()
			synctest.Wait()
		}
		require.NoError(t, <-waited)
		var r *limits.Refusal
		_, err = l.reserve(t.Context(), ask(3))
		require.ErrorAs(t, err, &r, "it would fit, but before an earlier one")
		require.EqualValues(t, 3, r.Most)
		require.NoError(t, <-waited)
		require.NoError(t, <-waited)
		require.Empty(t, l.lines.byScope)
	})
}

// What was put off comes up again when its time has come; a job that comes after the change
// does not wait for that.
func TestAJobIsNotPutOffByALimitThatWasChanged(t *testing.T) {
	t.Parallel()
	r := setupJobs(t, withLimits(newCounters(t), limits.Limits{RequestsPerMinute: 1}))
	r.work()
	r.later(capped)
	r.take().done(`{"id":"1"}`)
	r.later(capped)
	require.Eventually(t, func() bool {
		l := r.ingress.stored.limits
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.putOffs) == 1
	}, soon, time.Millisecond)
	next := *r.ingress.current()
	next.StaticKeys = slices.Clone(next.StaticKeys)
	next.StaticKeys[0].Limits = &limits.Limits{RequestsPerMinute: 1000}
	r.ingress.Apply(next)
	third := r.later(capped)
	r.take().done(`{"id":"3"}`)
	require.Equal(t, "completed", r.show(third, "?wait=10s").Status)
}

// A token carries its limits until it ends, and an issuer that is gone changes nothing.
func TestLimitsOfATokenAreNotItsIssuers(t *testing.T) {
	t.Parallel()
	s, _ := door(t)
	issuer := loginIssuer()
	issuer.Limits = &oneAMinute
	for name, carried := range map[string]bool{"the token's": true, "the issuer's": false} {
		s.trust(issuer)
		raw := jwt()
		if carried {
			raw = jwt(map[string]any{"limits": map[string]any{"requests_per_minute": 1}})
		}
		caller, err := s.authenticate(asking(raw))
		require.NoError(t, err)
		adm := &admission{settings: s.current(), job: &inference.Job{KeyID: caller.ID}, ownLimits: caller.Limits}
		raised := issuer
		raised.Limits = &limits.Limits{RequestsPerMinute: 1000}
		s.trust(raised)
		now := s.keys.limitsNow(s.current(), adm)
		require.Equal(t, carried, now == caller.Limits, name)
		require.Equal(t, !carried, now == raised.Limits, name)
		s.trust()
		require.Same(t, caller.Limits, s.keys.limitsNow(s.current(), adm), name)
	}
}
