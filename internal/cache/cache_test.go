package cache

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/routing"
)

func TestWishOf(t *testing.T) {
	t.Parallel()
	none := Wish{MaxAge: -1}
	with := func(change func(*Wish)) Wish {
		w := none
		change(&w)
		return w
	}
	for header, want := range map[string]Wish{
		"":                             none,
		"no-cache":                     with(func(w *Wish) { w.NoCache = true }),
		" No-Store ,no-cache":          with(func(w *Wish) { w.NoStore, w.NoCache = true, true }),
		"only-if-cached":               with(func(w *Wish) { w.OnlyIfCached = true }),
		"max-age=60":                   with(func(w *Wish) { w.MaxAge = time.Minute }),
		`max-age="60"`:                 with(func(w *Wish) { w.MaxAge = time.Minute }),
		"max-age=60, max-age=5":        with(func(w *Wish) { w.MaxAge = 5 * time.Second }),
		"max-age=0":                    with(func(w *Wish) { w.MaxAge = 0 }),
		"max-age=99999999999999999999": with(func(w *Wish) { w.MaxAge = maxDelta * time.Second }),
		"max-stale":                    with(func(w *Wish) { w.MaxStale = forever }),
		"max-stale=5, max-stale":       with(func(w *Wish) { w.MaxStale = 5 * time.Second }),
		"max-age, max-age=, max-age=-1, max-age=1.5, max-age=x, max-age=+1": none,
		"no-cache=x, no-store=1, only-if-cached=y, max-stale=z":             none,
		"public, min-fresh=3, ,,=, max-agé=3":                               none,
	} {
		require.Equal(t, want, WishOf(http.Header{"Cache-Control": {header}}), header)
	}
	require.Equal(t, with(func(w *Wish) { w.NoCache, w.MaxAge = true, time.Second }), WishOf(http.Header{"Cache-Control": {"no-cache", "max-age=1"}}))
	require.False(t, none.Asks())
	require.True(t, Wish{MaxAge: 0}.Asks())
}

func TestDecide(t *testing.T) {
	t.Parallel()
	p := Policy{MemoryBytes: 1, TTL: time.Minute, ByRequest: true, Rules: []Rule{
		{Name: "off", When: routing.When{All: []routing.Match{{Models: []string{"secret"}}}}},
		{Name: "on", When: routing.When{All: []routing.Match{{Models: []string{"m"}}}}, Enabled: true, TTL: time.Hour},
	}}
	none, asks := Wish{MaxAge: -1}, Wish{MaxAge: 5}
	decide := func(p Policy, asked, resolved string, w Wish) (string, time.Duration, bool) {
		r, on := p.Decide(&routing.Request{Model: asked}, resolved, w)
		return r.Name, r.TTL, on
	}
	name, ttl, on := decide(p, "alias", "m", none)
	require.Equal(t, []any{"on", time.Hour, true}, []any{name, ttl, on})
	_, _, on = decide(p, "secret", "secret", asks)
	require.False(t, on, "a rule that covers the request decides alone")
	_, _, on = decide(p, "x", "x", none)
	require.False(t, on)
	_, ttl, on = decide(p, "x", "x", asks)
	require.Equal(t, []any{time.Minute, true}, []any{ttl, on})
	p.ByRequest = false
	_, _, on = decide(p, "x", "x", asks)
	require.False(t, on)
	p.MemoryBytes = 0
	_, _, on = decide(p, "m", "m", none)
	require.False(t, on, "there is nowhere to keep an answer")
}

func TestJudge(t *testing.T) {
	t.Parallel()
	made := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	fresh, stale := made.Add(time.Minute), made.Add(time.Hour)
	none := Wish{MaxAge: -1}
	at := func(r Rule, w Wish, age time.Duration) State { return r.Judge(w, made, fresh, stale, made.Add(age)) }
	r := Rule{TTL: time.Minute, StaleIfError: time.Hour}
	require.Equal(t, Fresh, at(r, none, time.Minute-1))
	require.Equal(t, Spare, at(r, none, time.Minute))
	require.Equal(t, Useless, at(r, none, time.Hour))
	require.Equal(t, Fresh, at(r, Wish{MaxAge: 5 * time.Second}, 5*time.Second))
	require.Equal(t, Useless, at(r, Wish{MaxAge: 5 * time.Second}, 6*time.Second))
	require.Equal(t, Spare, at(r, Wish{MaxAge: 2 * time.Minute}, 2*time.Minute))
	require.Equal(t, Useless, at(r, Wish{MaxAge: 2 * time.Minute}, 2*time.Minute+1))
	require.Equal(t, Stale, at(r, Wish{MaxAge: -1, MaxStale: time.Second}, 61*time.Second))
	require.Equal(t, Spare, at(r, Wish{MaxAge: -1, MaxStale: time.Second}, 62*time.Second))
	require.Equal(t, Useless, at(r, Wish{MaxAge: 1, MaxStale: forever}, 62*time.Second))
	require.Equal(t, Useless, at(Rule{TTL: time.Second}, none, 2*time.Second), "the rule in force is stricter than the one before")
	require.Equal(t, Spare, at(Rule{TTL: time.Hour, StaleIfError: time.Hour}, none, time.Minute), "or laxer, which does not count")
}

func TestKeys(t *testing.T) {
	t.Parallel()
	base := func(change func(*Question)) Base {
		q := Question{Tenant: "t", Kind: inference.KindChat, Model: "m", Body: []byte(`{"model":"m","messages":[]}`)}
		change(&q)
		b, err := q.Base()
		require.NoError(t, err)
		return b
	}
	seen := make(map[Base]bool)
	for _, change := range []func(*Question){
		func(*Question) {}, func(q *Question) { q.Tenant = "tm" }, func(q *Question) { q.KeyID = "k" }, func(q *Question) { q.Model = "n" },
		func(q *Question) { q.Kind = inference.KindEmbeddings }, func(q *Question) { q.Body = []byte(`{"messages":[1]}`) },
		func(q *Question) { q.Tenant, q.KeyID = "", "t" },
	} {
		b := base(change)
		require.False(t, seen[b])
		seen[b] = true
	}
	require.Equal(t, base(func(*Question) {}), base(func(q *Question) { q.Body = []byte(`{"messages":[ ],"model":"alias"}`) }))
	b := base(func(*Question) {})
	keys := map[Key]bool{}
	for _, c := range []inference.Candidate{{Provider: "a", Model: "m"}, {Provider: "a", Model: "n"}, {Provider: "am"}, {Provider: "b", Model: "m"}} {
		keys[b.Of(c)] = true
	}
	require.Len(t, keys, 4)
	_, err := Question{Body: []byte(`[]`)}.Base()
	require.Error(t, err)
}

func BenchmarkKey(b *testing.B) {
	q := Question{Tenant: "t", Kind: inference.KindChat, Model: "m", Body: []byte(`{"model":"m","temperature":0.7,"messages":[{"role":"system","content":"You are helpful."},{"role":"user","content":"What is the capital of France, and since when?"}]}`)}
	b.ReportAllocs()
	for b.Loop() {
		base, err := q.Base()
		if err != nil {
			b.Fatal(err)
		}
		_ = base.Of(inference.Candidate{Provider: "openai", Model: "m"})
	}
}
