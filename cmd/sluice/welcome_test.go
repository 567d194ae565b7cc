package main

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/apikey"
	"sluice/internal/config"
	"sluice/providers/sim"
	"sluice/store"
)

func TestFirstKeyIsMadeOnce(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.DataDir = t.TempDir()
	opened, err := openStore(t.Context(), &cfg)
	require.NoError(t, err)
	defer func() { require.NoError(t, opened.Close()) }()
	db := &database{Store: opened, usable: make(chan struct{})}
	_, err = db.firstKey(t.Context(), &cfg)
	require.ErrorIs(t, err, errNotYet)
	close(db.usable)
	_, err = db.firstKey(t.Context(), &cfg)
	require.Error(t, err, "no schema yet")
	require.NoError(t, db.Migrate(t.Context()))

	secret, err := db.firstKey(t.Context(), &cfg)
	require.NoError(t, err)
	require.True(t, apikey.WellFormed(secret))
	key, err := db.KeyByHash(t.Context(), apikey.Hash(secret))
	require.NoError(t, err)
	require.Equal(t, "default", key.Tenant)
	again, err := db.firstKey(t.Context(), &cfg)
	require.NoError(t, err)
	require.Empty(t, again)

	_, err = db.RevokeKey(t.Context(), key.ID, store.Change{Actor: "test"})
	require.NoError(t, err)
	cfg.Auth.Keys = []config.StaticKey{{Name: "dev"}}
	again, err = db.firstKey(t.Context(), &cfg)
	require.NoError(t, err)
	require.Empty(t, again, "the configuration has one")
	cfg.Auth.Keys = nil
	again, err = db.firstKey(t.Context(), &cfg)
	require.NoError(t, err)
	require.Empty(t, again, "all are revoked: that was somebody's will, and a start does not undo it")
}

// taken is a store in which another process made the first key a moment before.
type taken struct{ store.Store }

func (taken) ListKeys(context.Context) ([]store.Key, error) { return nil, nil }
func (taken) CreateKey(context.Context, store.Key, store.Change) error {
	return store.ErrNameTaken
}

func TestFirstKeyOfProcessesThatStartTogether(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	db := &database{Store: taken{}, usable: make(chan struct{})}
	close(db.usable)
	secret, err := db.firstKey(t.Context(), &cfg)
	require.NoError(t, err)
	require.Empty(t, secret)
}

func TestTrialModel(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	require.Equal(t, "MODEL", trialModel(&cfg))
	cfg.Providers = map[string]config.Provider{}
	for name := range strings.SplitSeq("hgfedcba", "") {
		cfg.Providers[name] = config.Provider{Type: config.TypeOpenAI, Models: []string{"gpt-*", "gpt-" + name}}
	}
	require.Equal(t, "gpt-a", trialModel(&cfg))
	for _, name := range []string{"sim-b", "sim-a"} {
		p := config.NewProvider(config.TypeSim)
		p.Models = []string{"glob-*", name}
		cfg.Providers[name] = p
	}
	for range 20 {
		require.Equal(t, "sim-a", trialModel(&cfg), "the same one every time")
	}
}

func TestProvidersAreGreetedInOrder(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.Providers = map[string]config.Provider{}
	for name := range strings.SplitSeq("hgfedcba", "") {
		cfg.Providers[name] = config.NewProvider(config.TypeSim)
	}
	var out strings.Builder
	welcome{out: &out}.tell(&cfg, "http://127.0.0.1:1", "keys")
	require.Regexp(t, `(?s)  a .*  b .*  c .*  d .*  e .*  f .*  g .*  h .*keys`, out.String())
}

func TestBaseURLCanBeCalled(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"[::]:8080": "http://127.0.0.1:8080", "0.0.0.0:80": "http://127.0.0.1:80", "127.0.0.1:1": "http://127.0.0.1:1",
		":8080": "http://127.0.0.1:8080", "[::1]:8080": "http://[::1]:8080", "192.0.2.7:8080": "http://192.0.2.7:8080",
	} {
		addr, err := net.ResolveTCPAddr("tcp", address)
		require.NoError(t, err)
		require.Equal(t, want, baseURL(addr.String()))
	}
}

// flaky is a store that lists its keys after a number of failures.
type flaky struct {
	store.Store
	failures int
	keys     []store.Key
}

func (f *flaky) ListKeys(context.Context) ([]store.Key, error) {
	if f.failures--; f.failures >= 0 {
		return nil, context.DeadlineExceeded
	}
	return f.keys, nil
}

func TestWelcomeOnceTheDatabaseIsBack(t *testing.T) {
	t.Parallel()
	for want, keys := range map[string][]store.Key{"there is no API key": nil, "API keys exist": {{}}} {
		synctest.Test(t, func(t *testing.T) {
			cfg := config.Default()
			var out strings.Builder
			db := &database{Store: &flaky{failures: 3, keys: keys}, usable: make(chan struct{})}
			done := make(chan struct{})
			go func() {
				defer close(done)
				welcome{out: &out}.tellWhenBack(t.Context(), &cfg, db)
			}()
			time.Sleep(time.Minute)
			require.Empty(t, out.String(), "it is not back")
			close(db.usable)
			<-done
			require.Contains(t, out.String(), want)
			require.Contains(t, out.String(), "sluice keys create")
		})
	}
}

// The simulated provider's default stands in the configuration, from which its schema
// and example are made, and in the adapter, for who builds one without it.
func TestSimHasOneDefault(t *testing.T) {
	t.Parallel()
	p := config.NewProvider(config.TypeSim)
	require.Equal(t, sim.DefaultCompletionTokens, p.Sim.CompletionTokens)
}
