package config

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Every setting says when a change takes force, and the schema says it too.
func TestEverySettingIsLiveOrNeedsARestart(t *testing.T) {
	t.Parallel()
	schema := compileSchema(t)
	require.NotNil(t, schema)
	counts := make(map[string]int)
	walk(specOf(Config{}), nil, func(s *spec, p path) {
		if len(p) > 0 && s.kind != kindStruct {
			require.Contains(t, []string{reloadLive, reloadRestart}, s.reload, p)
			counts[s.reload]++
		}
	})
	require.Greater(t, counts[reloadLive], 50)
	require.Greater(t, counts[reloadRestart], 50)

	text, err := Schema()
	require.NoError(t, err)
	var shown struct {
		Properties map[string]struct {
			Reload     string `json:"x-reload"`
			Properties map[string]struct {
				Reload     string `json:"x-reload"`
				Properties map[string]struct {
					Reload string `json:"x-reload"`
				} `json:"properties"`
			} `json:"properties"`
		} `json:"properties"`
	}
	require.NoError(t, json.Unmarshal(text, &shown))
	require.Equal(t, reloadRestart, shown.Properties["data_dir"].Reload)
	require.Equal(t, reloadLive, shown.Properties["providers"].Reload)
	require.Equal(t, reloadRestart, shown.Properties["server"].Properties["address"].Reload)
	require.Empty(t, shown.Properties["server"].Reload, "a section holds settings of both kinds")
	require.Equal(t, reloadLive, shown.Properties["server"].Properties["cors"].Properties["max_age"].Reload)
	require.Equal(t, reloadLive, shown.Properties["observability"].Properties["log_level"].Reload)
	require.Equal(t, reloadRestart, shown.Properties["observability"].Properties["log_format"].Reload)
}

// The guide names what needs a restart: these settings, and no other ones.
func TestTheGuideNamesWhatNeedsARestart(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../deploy/guide/reload.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(text), "**What needs a restart:**")
	require.True(t, ok)
	list, _, ok := strings.Cut(rest, ". ")
	require.True(t, ok)
	named, spared, ok := strings.Cut(list, " but for ")
	require.True(t, ok)
	spared, more, _ := strings.Cut(spared, ",")
	names := func(text string) (paths []string) {
		for i, part := range strings.Split(text, "`") {
			if i%2 == 1 {
				paths = append(paths, part)
			}
		}
		return paths
	}
	under := func(p path, names []string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return p.String() == name || strings.HasPrefix(p.String(), name+".") })
	}
	walk(specOf(Config{}), nil, func(s *spec, p path) {
		if len(p) > 0 && s.kind != kindStruct {
			restart := under(p, names(named+more)) && !under(p, names(spared))
			require.Equal(t, s.reload == reloadRestart, restart, p)
		}
	})
}

func TestReloaded(t *testing.T) {
	t.Parallel()
	old, next := Default(), Default()
	inForce, waiting := Reloaded(&old, &next)
	require.Equal(t, &old, inForce)
	require.Empty(t, waiting)

	next.Server.Address, next.Server.CORS.MaxAge, next.DataDir = "127.0.0.1:1", time.Hour, "/elsewhere"
	next.Queue.TLS.CAFile, next.Queue.Password, next.Admin.Token = "ca", "secret-password", "secret-token-of-20-c"
	next.Observability.LogLevel, next.Observability.LogFormat = "debug", "text"
	next.Providers = map[string]Provider{"p": NewProvider(TypeSim)}
	next.Auth.Keys = []StaticKey{{Name: "k"}}
	next.Cache.TTL, next.Cache.MemoryBytes = time.Minute, 1
	inForce, waiting = Reloaded(&old, &next)
	require.Equal(t, []string{
		"server.address", "data_dir", "queue.password", "queue.tls.ca_file", "cache.memory_bytes", "observability.log_format", "admin.token",
	}, waiting, "named by key, without a word of what they are")

	want := Default()
	want.Server.CORS.MaxAge, want.Observability.LogLevel, want.Cache.TTL = time.Hour, "debug", time.Minute
	want.Providers, want.Auth.Keys = next.Providers, next.Auth.Keys
	require.Equal(t, &want, inForce)
	require.Equal(t, "/elsewhere", next.DataDir, "what was read is not changed")
	require.Equal(t, Default(), old)

	_, waiting = Reloaded(inForce, &old)
	require.Empty(t, waiting, "back at the start nothing waits")
}

// Whatever a setting is, a change of it either takes force or is told to wait.
func TestNoChangeIsLost(t *testing.T) {
	t.Parallel()
	old := Default()
	s := specOf(old)
	for _, f := range s.fields {
		next := Default()
		v := valueOf(&next).Field(f.index)
		if v.Kind() != reflect.Struct {
			continue
		}
		for _, g := range f.fields {
			if g.kind == kindBool {
				v.Field(g.index).SetBool(!v.Field(g.index).Bool())
			}
		}
		inForce, waiting := Reloaded(&old, &next)
		if reflect.DeepEqual(old, next) {
			continue
		}
		require.True(t, len(waiting) > 0 || reflect.DeepEqual(*inForce, next), f.name)
	}
}

func TestShowJSON(t *testing.T) {
	t.Parallel()
	c := Default()
	c.Admin.Token = "not-to-be-seen-anywhere"
	text, err := ShowJSON(&c)
	require.NoError(t, err)
	require.NotContains(t, string(text), c.Admin.Token.Reveal())
	var shown struct {
		Server struct{ Address string }
		Admin  struct{ Token string }
	}
	require.NoError(t, json.Unmarshal(text, &shown))
	require.Equal(t, "127.0.0.1:8080", shown.Server.Address)
	require.Equal(t, mask, shown.Admin.Token)
}
