package config

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func answers(addresses ...string) func(context.Context, string) bool {
	return func(_ context.Context, address string) bool { return slices.Contains(addresses, address) }
}

func TestDiscoverNothingButSim(t *testing.T) {
	t.Parallel()
	found := Discover(t.Context(), nil, answers())
	require.Len(t, found, 1)
	require.Equal(t, "sim", found[0].Name)
	require.Equal(t, []string{"sim"}, found[0].Provider.Models)
	require.NotNil(t, found[0].Provider.Sim)
}

func TestDiscoverAll(t *testing.T) {
	t.Parallel()
	found := Discover(t.Context(), []string{"OPENAI_API_KEY=sk-1", "GEMINI_API_KEY=g", "ANTHROPIC_API_KEY=a"}, answers("http://127.0.0.1:11434/api/version"))
	names := make([]string, len(found))
	providers := make(map[string]Provider)
	for i, f := range found {
		names[i] = f.Name
		require.NotContains(t, f.What+f.Why, "sk-1")
		require.Equal(t, f.Provider == nil, f.Why != "", "either a provider or a reason")
		if f.Provider != nil {
			providers[f.Name] = *f.Provider
		}
	}
	require.Equal(t, []string{"openai", "ollama", "gemini", "anthropic", "sim"}, names)
	require.Equal(t, "sk-1", providers["openai"].APIKey.Reveal())
	require.Equal(t, URL("https://api.openai.com/v1"), providers["openai"].BaseURL)
	require.Equal(t, []string{"gpt-*", "o1*", "o3*", "o4*", "chatgpt-*"}, providers["openai"].Models)
	require.Equal(t, URL("http://127.0.0.1:11434/v1"), providers["ollama"].BaseURL)
	require.Empty(t, providers["ollama"].Models)
	require.Equal(t, 64, providers["ollama"].Concurrency)

	// What is found passes the checks that a file's providers pass.
	c := Default()
	c.Providers = providers
	f := newFaults()
	validate(&c, Options{Role: RoleServe}, &node{}, f)
	require.NoError(t, f.err())
}

func TestDiscoverOpenAIBaseURL(t *testing.T) {
	t.Parallel()
	found := Discover(t.Context(), []string{"OPENAI_API_KEY=k", "OPENAI_BASE_URL=http://gpu:8000/v1/"}, answers())
	require.Equal(t, URL("http://gpu:8000/v1"), found[0].Provider.BaseURL)
	require.Empty(t, found[0].Provider.Models)
	found = Discover(t.Context(), []string{"OPENAI_API_KEY=k", "OPENAI_BASE_URL=https://api.openai.com/v1/"}, answers())
	require.NotEmpty(t, found[0].Provider.Models)
	found = Discover(t.Context(), []string{"OPENAI_API_KEY=k", "OPENAI_BASE_URL=gpu"}, answers())
	require.Nil(t, found[0].Provider)
	require.Contains(t, found[0].Why, "OPENAI_BASE_URL")
	require.Len(t, Discover(t.Context(), []string{"OPENAI_API_KEY="}, answers()), 1)
}

func TestDiscoverOllamaHost(t *testing.T) {
	t.Parallel()
	cases := []struct{ host, want string }{
		{"", "http://127.0.0.1:11434"},
		{"gpu", "http://gpu:11434"},
		{"gpu:99", "http://gpu:99"},
		{":99", "http://127.0.0.1:99"},
		{"0.0.0.0", "http://127.0.0.1:11434"},
		{"0.0.0.0:99", "http://127.0.0.1:99"},
		{"[::]:99", "http://127.0.0.1:99"},
		{"[::1]", "http://[::1]:11434"},
		{"http://gpu", "http://gpu:80"},
		{"https://gpu/", "https://gpu:443"},
		{"https://gpu:8/ollama/", "https://gpu:8/ollama"},
		{`"gpu"`, "http://gpu:11434"},
	}
	for _, c := range cases {
		found := Discover(t.Context(), []string{"OLLAMA_HOST=" + c.host}, answers(c.want+"/api/version"))
		require.Equal(t, "ollama", found[0].Name, c.host)
		require.NotNil(t, found[0].Provider, c.host)
		require.Equal(t, URL(c.want+"/v1"), found[0].Provider.BaseURL)
	}
	for _, silent := range []string{"gpu", "ftp://gpu", "http://a b", "http://%zz"} {
		found := Discover(t.Context(), []string{"OLLAMA_HOST=" + silent}, answers())
		require.Equal(t, "ollama", found[0].Name)
		require.Nil(t, found[0].Provider)
		require.NotEmpty(t, found[0].Why)
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			select {
			case <-release:
			case <-r.Context().Done():
			}
		case "/missing":
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(func() { close(release); server.Close() })
	require.True(t, Probe(t.Context(), server.URL+"/api/version"))
	require.False(t, Probe(t.Context(), server.URL+"/missing"))
	begin := time.Now()
	require.False(t, Probe(t.Context(), server.URL+"/slow"))
	require.Less(t, time.Since(begin), 10*probeTimeout)
	require.False(t, Probe(t.Context(), "http://127.0.0.1:1/"))
	require.False(t, Probe(t.Context(), "::"))
}
