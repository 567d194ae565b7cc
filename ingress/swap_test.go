package ingress

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/apikey"
	"sluice/internal/cache"
	"sluice/internal/queue"
	"sluice/internal/routing"
	"sluice/internal/token"
	"sluice/store"
)

// fileNamed is a configuration that shares nothing with one of another name: its key and
// its tokens may ask for its model alone, which no other routes.
func fileNamed(name string) Settings {
	issuer := loginIssuer()
	issuer.Audiences = []string{name}
	when := routing.When{All: []routing.Match{{Models: []string{"m-" + name}}}}
	return Settings{
		StaticKeys: []store.Key{{ID: name, Tenant: "team", Models: []string{"m-" + name}, Hash: apikey.Hash(secretOf(name))}},
		Tokens:     []token.Issuer{issuer},
		Providers:  map[string]ProviderInfo{"acme": {Models: []string{"m-" + name}}},
		Policy:     routing.Policy{Rules: []routing.Rule{{Name: name, When: when, Targets: []routing.Target{{Provider: "acme", Model: name}}}}},
		CORS:       NewCORS(CORSOptions{Origins: []string{originOf(name)}}),
		Cache:      cache.Policy{MemoryBytes: 1 << 20, MaxAnswer: 1 << 10, Rules: []cache.Rule{{Name: name, Enabled: true, When: when}}},
	}
}

func secretOf(name string) string { return "a-secret-of-the-file-" + name }
func originOf(name string) string { return "https://" + name + ".example" }

// Two configurations take turns as fast as they can, while workers speak. Whoever is known
// by one of them is served by it in everything; else they are not known at all.
func TestARequestSeesOneConfiguration(t *testing.T) {
	t.Parallel()
	in, page := door(t)
	in.tokens = page.verifier()
	in.flights.conn = setup(t).conn // which is all that its queue is asked: whether it is there
	files := []Settings{fileNamed("a"), fileNamed("b")}
	in.Apply(files[0])
	h := in.Handler()
	var known, strange atomic.Int64
	ask := func(name, secret string) error {
		get := asking(secret)
		get.Method = http.MethodGet
		get.URL.Path = "/v1/models/m-" + name
		get.Header.Set("Origin", originOf(name))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, get)
		page := w.Header().Get("Access-Control-Allow-Origin") != ""
		if known := w.Code == http.StatusOK; known != page || !known && w.Code != http.StatusUnauthorized {
			return fmt.Errorf("%s: status %d, page may call %t: %s", name, w.Code, page, w.Body)
		}
		_ = in.workers.now() // as those ask who are no request
		post := httptest.NewRequest(http.MethodPost, chatPath, strings.NewReader(`{"model":"m-`+name+`","messages":[{"role":"user","content":"hi"}]}`))
		post.Header.Set("Authorization", get.Header.Get("Authorization"))
		w = httptest.NewRecorder()
		adm, err := in.admit(w, in.begun(post), chatCompletion, time.Now())
		switch {
		case err != nil && codeOf(err) == "invalid_api_key", err != nil && codeOf(err) == "invalid_token":
			strange.Add(1)
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		}
		adm.memory.release()
		known.Add(1)
		if adm.job.Candidate().Model != name || adm.cache == nil || adm.cache.rule.Name != name || adm.settings.StaticKeys[0].ID != name {
			return fmt.Errorf("%s: candidate %s, cache %+v, settings of %s", name, adm.job.Candidate().Model, adm.cache, adm.settings.StaticKeys[0].ID)
		}
		return nil
	}
	over := time.Now().Add(time.Second)
	var asking, changing sync.WaitGroup
	wrong := make(chan error, 4)
	for i := range cap(wrong) {
		name := []string{"a", "b"}[i%2]
		secret := secretOf(name)
		if i >= 2 {
			secret = jwt(map[string]any{"aud": name, "models": "m-" + name})
		}
		asking.Go(func() {
			for time.Now().Before(over) {
				if err := ask(name, secret); err != nil {
					wrong <- err
					return
				}
			}
		})
	}
	changing.Go(func() {
		for n := 0; time.Now().Before(over); n++ {
			in.workers.heard(presence("w", queue.ProviderPresence{Name: "acme", InFlight: n, Models: []string{"m-a", "m-b"}}))
			in.Apply(files[n%2])
		}
	})
	asking.Wait()
	changing.Wait()
	select {
	case err := <-wrong:
		require.NoError(t, err)
	default:
	}
	require.Positive(t, known.Load())
	require.Positive(t, strange.Load())
}

// A request that began under an older configuration is routed by that, with what workers
// say by now: a provider that was taken out, and has no worker any more, is no more to it.
func TestALateRequestOfAnOlderConfiguration(t *testing.T) {
	t.Parallel()
	d := directoryOf(map[string]ProviderInfo{"goes": {Models: []string{"m"}}, "stays": {Models: []string{"m"}}}, routing.Policy{Order: []string{"goes"}})
	old := d.layout.Load()
	offer := presence("w", queue.ProviderPresence{Name: "goes"})
	d.heard(offer)
	late := func() (names []string) {
		old.picture.Load().drawn = time.Now().Add(-2 * redrawOld)
		for _, c := range d.tableOf(old).Serves("m") {
			names = append(names, c.Provider)
		}
		return names
	}
	d.configure(map[string]ProviderInfo{"stays": {Models: []string{"m"}}, "new": {Models: []string{"m"}}}, routing.Policy{})
	require.Equal(t, []string{"goes", "stays"}, late())
	require.True(t, d.tableOf(old).Providers[0].Live())
	drawn := old.picture.Load()
	_ = d.tableOf(old)
	require.Same(t, drawn, old.picture.Load(), "not for every request")
	d.heard(queue.Presence{Worker: "w", Leaving: true})
	require.Equal(t, []string{"stays"}, late())
	require.NotContains(t, d.queues(), "goes")
	require.Contains(t, d.queues(), "new")
}
