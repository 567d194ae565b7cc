package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/apikey"
	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/internal/routing"
	"sluice/store"
)

// settingsWith are those of the rig, with further providers.
func (r *rig) settingsWith(extra ...string) Settings {
	s := Settings{
		StaticKeys: []store.Key{{ID: "key", Tenant: "team", Hash: apikey.Hash(r.key)}},
		Providers:  map[string]ProviderInfo{"acme": {Models: []string{"m", "m-*"}, MaxQueued: 4}},
	}
	for _, name := range extra {
		s.Providers[name] = ProviderInfo{Models: []string{name + "-model"}, MaxQueued: 7}
	}
	return s
}

// The largest answer that is kept is the one in force when its request came.
func TestTheLargestKeptAnswerChanges(t *testing.T) {
	t.Parallel()
	r := setup(t, caching())
	r.work()
	keep := func(bytes int) {
		next := *r.ingress.current()
		next.Cache.MaxAnswer = bytes
		r.ingress.Apply(next)
	}
	keep(len(wholeAnswer) - 1)
	r.miss(plainRequest)
	r.miss(plainRequest)
	keep(len(wholeAnswer))
	r.miss(plainRequest)
	r.chat(plainRequest).told(cacheHit)
}

// Requests come all the time while the settings are swapped. Each is answered.
func TestRequestsDoNotNoticeThatSettingsChange(t *testing.T) {
	t.Parallel()
	r := setup(t, func(o *Options) { o.Settings.Providers["acme"] = ProviderInfo{Models: []string{"m"}, MaxQueued: 1000} })
	r.work()
	require.NoError(t, r.conn.Announce(queue.Presence{Worker: "worker01", Providers: []queue.ProviderPresence{{Name: "acme", MaxQueued: 1000, Slots: 64}}}))
	require.Eventually(t, func() bool { return r.ingress.workers.queues()["acme"] == 1000 }, soon, time.Millisecond)
	require.NoError(t, r.ingress.flights.ensureStreams(t.Context()))
	stop := make(chan struct{})
	var working, sending sync.WaitGroup
	working.Go(func() {
		for {
			select {
			case k := <-r.jobs:
				k.succeed(`{"id":"x"}`)
			case <-stop:
				return
			}
		}
	})
	var answered, failed atomic.Int64
	over := time.Now().Add(2 * time.Second)
	for range 3 {
		sending.Go(func() {
			for time.Now().Before(over) {
				req := r.request(http.MethodPost, r.server.URL+chatPath, plainRequest)
				resp, err := r.server.Client().Do(req)
				if err != nil || resp.StatusCode != http.StatusOK {
					failed.Add(1)
					continue
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				answered.Add(1)
			}
		})
	}
	for n := 0; time.Now().Before(over); n++ {
		next := r.settingsWith(fmt.Sprint("extra", n%3))
		next.Providers["acme"] = ProviderInfo{Models: []string{"m", fmt.Sprint("m-", n)}, MaxQueued: 1000}
		next.Policy = routing.Policy{Order: []string{"acme"}}
		r.ingress.Apply(next)
		<-time.After(5 * time.Millisecond)
	}
	sending.Wait()
	close(stop)
	working.Wait()
	require.Zero(t, failed.Load())
	require.Greater(t, answered.Load(), int64(100))
}

// A key that is taken out of the configuration is refused at once; what its holder began
// before is answered.
func TestAKeyThatIsTakenOut(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(plainRequest)
	k := r.take()
	next := r.settingsWith()
	next.StaticKeys = []store.Key{{ID: "fresh", Tenant: "team", Hash: apikey.Hash("a-fresh-key-of-the-file")}}
	r.ingress.Apply(next)
	r.chat(plainRequest).fails(http.StatusUnauthorized, inference.CodeUnauthenticated)
	fresh := r.request(http.MethodGet, r.server.URL+"/v1/models", "")
	fresh.Header.Set("Authorization", "Bearer a-fresh-key-of-the-file")
	resp, _ := r.send(fresh).whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	_, err := r.ingress.keys.byID(t.Context(), r.ingress.current().callers, "fresh")
	require.NoError(t, err)
	k.succeed(`{"id":"x"}`)
	resp, _ = c.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
}

func TestANewProviderHasItsQueueAtOnce(t *testing.T) {
	t.Parallel()
	r := setup(t)
	require.NoError(t, r.conn.EnsureShared(t.Context()))
	r.ingress.Apply(r.settingsWith("extra"))
	require.Eventually(t, func() bool {
		_, err := r.conn.Depth(t.Context(), "extra")
		return err == nil
	}, soon/2, time.Millisecond, "long before the next look at all queues")
	require.Equal(t, 7, r.ingress.workers.queues()["extra"])
}

// A provider that is taken out gets no new request, however loudly its workers go on. What
// it has is answered.
func TestAProviderThatIsTakenOut(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(plainRequest)
	k := r.take()
	next := r.settingsWith("extra")
	delete(next.Providers, "acme")
	r.ingress.Apply(next)
	say := func() {
		t.Helper()
		require.NoError(t, r.conn.Announce(queue.Presence{Worker: "worker01", Providers: []queue.ProviderPresence{{Name: "acme", MaxQueued: 4, Models: []string{"m"}}}}))
	}
	say()
	r.chat(plainRequest).fails(http.StatusNotFound, inference.CodeModelNotFound)
	require.True(t, r.ingress.workers.alive(inference.Candidate{Provider: "acme"}), "its jobs are not taken elsewhere")
	k.succeed(`{"id":"x"}`)
	resp, _ := c.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)

	r.ingress.Apply(r.settingsWith())
	again := r.chat(plainRequest)
	r.take().succeed(`{"id":"y"}`)
	resp, _ = again.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode, "back in the configuration it is served again")
}

func TestDirectoryForgetsWhatWasTakenOut(t *testing.T) {
	t.Parallel()
	d := directoryOf(map[string]ProviderInfo{"a": {Models: []string{"m"}}}, routing.Policy{})
	offer := presence("w", queue.ProviderPresence{Name: "a", Models: []string{"m"}})
	d.heard(offer)
	d.configure(map[string]ProviderInfo{}, routing.Policy{})
	require.Empty(t, d.now().Serves("m"))
	d.heard(offer)
	require.Empty(t, d.now().Serves("m"))
	d.heard(queue.Presence{Worker: "w", Leaving: true})
	require.Empty(t, d.layout.Load().removed, "nobody speaks of it any more")
	d.heard(offer)
	require.Len(t, d.now().Serves("m"), 1, "a worker of one that is not configured is a find")
}

// Of a rule that remains the turns go on where they were.
func TestTurnsGoOn(t *testing.T) {
	t.Parallel()
	rules := func(names ...string) (p routing.Policy) {
		for _, n := range names {
			p.Rules = append(p.Rules, routing.Rule{Name: n})
		}
		return p
	}
	d := directoryOf(nil, rules("stays", "goes"))
	for range 3 {
		d.layout.Load().turn("stays")
		d.layout.Load().turn("goes")
	}
	d.configure(nil, rules("new", "stays"))
	require.EqualValues(t, 3, d.layout.Load().turn("stays"))
	require.EqualValues(t, 0, d.layout.Load().turn("new"))
	require.EqualValues(t, 0, d.layout.Load().turn("goes"))
	d.configure(nil, rules("goes"))
	require.EqualValues(t, 0, d.layout.Load().turn("goes"), "one that comes back begins anew")
}

// fileOf is a configuration's source for a test.
type fileOf struct {
	mu      sync.Mutex
	state   adminapi.ConfigState
	err     error
	reloads int
}

func (f *fileOf) State() (adminapi.ConfigState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state, nil
}

func (f *fileOf) Reload(context.Context) (before, after adminapi.ConfigState, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reloads++
	return f.state, f.state, f.err
}

func TestOperatorsSeeTheConfiguration(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	file := &fileOf{state: adminapi.ConfigState{
		File: "/etc/sluice.yaml", Hash: "abc", LoadedAt: at, NeedsRestart: []string{"server.address"},
		Config: json.RawMessage(`{"data_dir":"d"}`), YAML: []byte("data_dir: d\nserver:\n  address: a\n"),
	}}
	s := ingressOf(nil, routing.Policy{})
	s.opt.Config = file
	h := admin(t, s, adminToken)
	w := ask(h, http.MethodGet, adminapi.ConfigPath, "Bearer "+adminToken, "")
	require.Equal(t, http.StatusOK, w.Code)
	require.JSONEq(t, `{"file":"/etc/sluice.yaml","hash":"abc","loaded_at":"2026-02-03T04:05:06Z","last_reload":null,"needs_restart":["server.address"],"config":{"data_dir":"d"}}`, w.Body.String())

	req := httptest.NewRequest(http.MethodGet, adminapi.ConfigPath, strings.NewReader(""))
	req.Header.Set("Authorization", "Bearer "+adminToken)
	req.Header.Set("Accept", "application/yaml")
	w = httptest.NewRecorder()
	h.ServeHTTP(w, req)
	require.Equal(t, "application/yaml", w.Header().Get("Content-Type"))
	asJSON, err := yaml.YAMLToJSON(w.Body.Bytes())
	require.NoError(t, err, w.Body.String())
	require.JSONEq(t, `{"file":"/etc/sluice.yaml","hash":"abc","loaded_at":"2026-02-03T04:05:06Z","last_reload":null,"needs_restart":["server.address"],"config":{"data_dir":"d","server":{"address":"a"}}}`, string(asJSON))

	require.Equal(t, http.StatusUnauthorized, ask(h, http.MethodGet, adminapi.ConfigPath, "", "").Code)
	require.Equal(t, http.StatusUnauthorized, ask(h, http.MethodPost, adminapi.ConfigReloadPath, "", "").Code)
	require.Zero(t, file.reloads)
	none := ingressOf(nil, routing.Policy{})
	none.log = discard()
	require.Equal(t, http.StatusNotFound, ask(none.AdminHandler(adminToken), http.MethodGet, adminapi.ConfigPath, "Bearer "+adminToken, "").Code)
}

func TestOperatorsReloadTheConfiguration(t *testing.T) {
	t.Parallel()
	file := &fileOf{state: adminapi.ConfigState{File: "f", Hash: "abc", NeedsRestart: []string{}, Config: json.RawMessage(`{}`)}}
	s := ingressOf(nil, routing.Policy{})
	s.opt.Config = file
	h := admin(t, s, adminToken)
	reload := func() *httptest.ResponseRecorder {
		return ask(h, http.MethodPost, adminapi.ConfigReloadPath, "Bearer "+adminToken, "")
	}
	w := reload()
	require.Equal(t, http.StatusOK, w.Code)
	require.NotContains(t, w.Body.String(), "config", "its settings are asked for elsewhere")
	require.Equal(t, 1, file.reloads)

	file.err = errors.New("bad")
	file.state.LastReload = &adminapi.ConfigReload{Faults: []adminapi.ConfigFault{{At: "f:3:1", Setting: "server.timeout", Problem: "is wrong"}}}
	w = reload()
	require.Equal(t, http.StatusUnprocessableEntity, w.Code)
	var refused struct {
		Error struct {
			Code    string
			Details struct{ Faults []adminapi.ConfigFault }
		}
	}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &refused))
	require.Equal(t, string(inference.CodeConfigInvalid), refused.Error.Code)
	require.Equal(t, file.state.LastReload.Faults, refused.Error.Details.Faults)

	file.err = ErrNoConfigFile
	w = reload()
	require.Equal(t, http.StatusConflict, w.Code)
	require.Contains(t, refusal(t, w).Error.Message, "without a configuration file")
}
