package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const openAI = "providers:\n  openai:\n    type: openai\n    base_url: https://api.openai.com/v1\n"

// read loads text as the file sluice.yaml with the environment given.
func read(text string, environ ...string) (*Loaded, error) {
	return load([]byte(text), Options{Path: "sluice.yaml", Environ: environ})
}

// problems returns what is wrong with text, one line for each fault.
func problems(t *testing.T, text string, environ ...string) []string {
	t.Helper()
	_, err := read(text, environ...)
	var invalid *InvalidError
	require.ErrorAs(t, err, &invalid)
	return strings.Split(invalid.Error(), "\n")
}

func exampleEnv() []string {
	return []string{
		"DEV_KEY=0123456789abcdef", "VISITOR_KEY=fedcba9876543210", "OPENAI_API_KEY=sk-test",
		"NATS_INGRESS_PASSWORD=a", "NATS_WORKER_PASSWORD=b", "LOCAL_BASE_URL=http://gpu:8000/v1",
		"DATABASE_URL=postgres://u:p@db/sluice", "ADMIN_TOKEN=operators-only-0123", "ON_CALL_TOKEN=on-call-alone-0123", "ANTHROPIC_KEY_A=a", "ANTHROPIC_KEY_B=b", "GEMINI_API_KEY=g", "AZURE_OPENAI_API_KEY=z",
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	loaded, err := Load(Options{Environ: []string{}})
	require.NoError(t, err)
	c := loaded.Config
	require.Equal(t, Default(), *c)
	require.Equal(t, Server{
		Address: "127.0.0.1:8080", Timeout: 10 * time.Minute, Keepalive: 5 * time.Second,
		MaxBodyBytes: 33554432, DrainTimeout: 10 * time.Minute, MaxInFlight: 10000, BodyMemory: 512 << 20, CORS: CORS{MaxAge: 10 * time.Minute},
	}, c.Server)
	require.Equal(t, Queue{
		Replicas: 1, Storage: "memory", MaxQueued: 1000, AckWait: 5 * time.Second,
		EventsMaxBytes: 268435456, EventsMaxAge: 15 * time.Minute, BodiesMaxBytes: 4294967296,
		Lanes: Lanes{BackgroundMinShare: 0.1, BatchMinShare: 0.05},
	}, c.Queue)
	require.Equal(t, Jobs{Retention: 24 * time.Hour, Deadline: 24 * time.Hour, MaxWait: time.Minute, MaxPerTenant: 100_000}, c.Jobs)
	require.Equal(t, Batches{MaxLines: 50_000, Window: 1000, Retention: 720 * time.Hour}, c.Batches)
	require.Equal(t, "./data", c.DataDir)
	require.Equal(t, Observability{LogLevel: "info", LogFormat: "json"}, c.Observability)
	require.Equal(t, Provider{
		Type: TypeSim, OnUnsupported: "reject", Concurrency: 64, Timeout: 5 * time.Minute, IdleTimeout: time.Minute, MaxRetries: 2,
		MinConcurrency: 1, MaxSlowdown: 3, RetryBudget: 0.2, Patience: 2 * time.Second,
		Breaker:          Breaker{Failures: 5, FailureRate: 0.5, MinCalls: 20, Window: 30 * time.Second, OpenFor: 10 * time.Second, Probes: 1},
		MaxResponseBytes: 33554432,
		Sim:              &Sim{FirstTokenDelay: 50 * time.Millisecond, TokensPerSecond: 50, CompletionTokens: 64},
	}, NewProvider(TypeSim))
}

// Every tag must be one that the package understands, and every default must lie
// within its own bounds.
func TestTags(t *testing.T) {
	t.Parallel()
	walk(specOf(Config{}), nil, func(s *spec, p path) {
		if s.name == "" {
			return
		}
		require.Contains(t, []Role{"", RoleIngress, RoleWorker}, s.side, p)
		require.Equal(t, s.bounds[0] != "", s.min != nil, p)
		require.Equal(t, s.bounds[1] != "", s.max != nil, p)
		if s.kind == kindInt || s.kind == kindSize || s.kind == kindFloat || s.kind == kindDuration {
			require.NotEqual(t, s.optional, s.def != nil, "%s has a default, unless what is not given means something", p)
			require.NotNil(t, s.min, "%s is bounded", p)
			require.NotNil(t, s.max, "%s is bounded", p)
		}
		if words, ok := s.def.([]string); ok {
			require.Empty(t, s.checkLen(len(words)), p)
			for _, word := range words {
				require.Empty(t, s.elem.check(word), p)
			}
		} else if s.def != nil {
			require.Empty(t, s.check(s.def), p)
		}
	})
}

// walk visits every spec below s.
func walk(s *spec, p path, visit func(*spec, path)) {
	visit(s, p)
	for _, f := range s.fields {
		walk(f, p.with(f.name), visit)
	}
	if s.elem != nil && s.kind == kindMap {
		walk(s.elem, p.with("x"), visit)
	}
	if s.elem != nil && s.kind == kindList {
		walk(s.elem, p.at(0), visit)
	}
}

func TestExamplesLoad(t *testing.T) {
	t.Parallel()
	cases := map[string]Role{
		"minimal.yaml": RoleServe, "full.yaml": RoleServe, "routing.yaml": RoleServe, "ingress.yaml": RoleIngress, "worker.yaml": RoleWorker,
	}
	files, err := filepath.Glob("../../deploy/examples/*.yaml")
	require.NoError(t, err)
	require.Len(t, files, len(cases))
	for _, file := range files {
		role := cases[filepath.Base(file)]
		require.NotEmpty(t, role, file)
		_, err := Load(Options{Path: file, Environ: exampleEnv(), Role: role})
		require.NoError(t, err)
	}
}

func TestFullExampleHasEverySettingAtItsDefault(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../deploy/examples/full.yaml")
	require.NoError(t, err)
	f := newFaults()
	root, _ := parseFile("full.yaml", data, f)
	require.NoError(t, f.err())
	walk(specOf(Config{}), nil, func(s *spec, p path) {
		if s.name == "" {
			return
		}
		var found bool
		for _, name := range []string{"openai", "anthropic", "azure", "inhouse", "sim"} {
			for _, i := range []string{"[0]", "[1]"} {
				concrete := slices.Clone(p)
				for j := range concrete {
					if concrete[j] == "x" {
						concrete[j] = name
					}
					if concrete[j] == "[0]" {
						concrete[j] = i
						if concrete[j-1] == "any" || concrete[j-1] == "not" {
							concrete[j-1] = "all" // their matches have the same settings
						}
					}
				}
				if concrete[0] == "cache" && slices.Contains(concrete, "when") {
					concrete[0] = "routing" // a condition is the same in both
				}
				found = found || root.lookup(concrete) != nil
			}
		}
		require.True(t, found, "full.yaml lacks %s", p)
	})
	loaded, err := load(data, Options{Environ: exampleEnv()})
	require.NoError(t, err)
	c, d := loaded.Config, Default()
	c.Server.CORS.AllowedOrigins, c.Server.CORS.AllowedHeaders, c.Server.CORS.ExposedHeaders = nil, nil, nil // none is none
	require.Equal(t, d.Server, c.Server)
	require.Equal(t, d.Queue, c.Queue)
	require.Equal(t, d.Files, c.Files)
	require.Equal(t, d.Observability, c.Observability)
	require.Equal(t, []Operator{{Name: "on-call", Token: "on-call-alone-0123", Role: "admin"}}, c.Admin.Operators)
	c.Admin.Address, c.Admin.Operators = "", nil // an operator needs a listener
	require.Equal(t, d.Admin, c.Admin)
	require.Equal(t, d.Idempotency, c.Idempotency)
	require.Equal(t, d.Webhooks, c.Webhooks)
	require.Equal(t, d.Jobs, c.Jobs)
	require.Equal(t, d.Batches, c.Batches)
	require.Equal(t, NewProvider(TypeSim).Sim, c.Providers["sim"].Sim)
	openai := NewProvider(TypeOpenAI)
	openai.BaseURL, openai.APIKey, openai.Models = c.Providers["openai"].BaseURL, c.Providers["openai"].APIKey, c.Providers["openai"].Models
	require.Equal(t, openai, c.Providers["openai"])
	var custom Custom
	applyDefaults(specOf(custom), valueOf(&custom))
	require.Equal(t, &custom, c.Providers["inhouse"].Custom)
	require.Equal(t, []UpstreamKey{{Key: "a", Weight: 3}, {Key: "b", Weight: 1}}, c.Providers["anthropic"].APIKeys)
}

func TestOrderOfSources(t *testing.T) {
	t.Parallel()
	text := "server: {address: 127.0.0.1:1, timeout: 1m}\n"
	loaded, err := read(text, "SLUICE_SERVER_ADDRESS=127.0.0.1:2")
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:2", loaded.Config.Server.Address)
	require.Equal(t, time.Minute, loaded.Config.Server.Timeout)
	require.Equal(t, 5*time.Second, loaded.Config.Server.Keepalive)
}

func TestValuesOfEveryKind(t *testing.T) {
	t.Parallel()
	loaded, err := read(`
server: {max_body_bytes: 1.5MiB, max_in_flight: 0x10, timeout: 1m30s}
queue: {events_max_bytes: 1048576, max_queued: 1000.0}
auth:
  keys: [{name: a, key: "0123456789abcdef", expires_at: 2030-01-31T00:00:00Z, models: ["gpt-*"]}]
providers:
  a: {type: sim, sim: {failure_rate: 0.5, tokens_per_second: 100}}
observability:
rate_limit: {}
cache:
`)
	require.NoError(t, err)
	c := loaded.Config
	require.Equal(t, Size(3<<19), c.Server.MaxBodyBytes)
	require.Equal(t, 16, c.Server.MaxInFlight)
	require.Equal(t, 90*time.Second, c.Server.Timeout)
	require.Equal(t, 1000, c.Queue.MaxQueued)
	require.Equal(t, Size(1<<20), c.Queue.EventsMaxBytes)
	require.Equal(t, "default", c.Auth.Keys[0].Tenant)
	require.Equal(t, 2030, c.Auth.Keys[0].ExpiresAt.Year())
	require.Equal(t, &Sim{FirstTokenDelay: 50 * time.Millisecond, TokensPerSecond: 100, FailureRate: 0.5, CompletionTokens: 64}, c.Providers["a"].Sim)
}

func TestAliasesAndMerges(t *testing.T) {
	t.Parallel()
	loaded, err := read(`
providers:
  a: &base {type: openai, base_url: "http://a/v1", models: &models [m], timeout: 1m}
  b: {<<: *base, base_url: "http://b/v1"}
  c: {type: sim, models: *models}
`, "SLUICE_PROVIDERS_B_TIMEOUT=2m")
	require.NoError(t, err)
	p := loaded.Config.Providers
	require.Equal(t, URL("http://b/v1"), p["b"].BaseURL)
	require.Equal(t, []string{"m"}, p["b"].Models)
	require.Equal(t, []string{"m"}, p["c"].Models)
	require.Equal(t, 2*time.Minute, p["b"].Timeout)
	require.Equal(t, time.Minute, p["a"].Timeout, "an override of one place leaves the anchor alone")
}

func TestMergeOfSeveral(t *testing.T) {
	t.Parallel()
	loaded, err := read(`
providers:
  a: &a {type: sim, timeout: 1m}
  b: &b {type: sim, timeout: 2m, max_retries: 5}
  c: {<<: [*a, *b], concurrency: 1}
  2: {type: sim}
`)
	require.NoError(t, err)
	c := loaded.Config.Providers["c"]
	require.Equal(t, time.Minute, c.Timeout, "the first of the list wins")
	require.Equal(t, 5, c.MaxRetries)
	require.Equal(t, 1, c.Concurrency)
	require.Contains(t, loaded.Config.Providers, "2")
	require.Contains(t, problems(t, "server: {<<: [1]}")[0], "server: merges something that is not a section")
}

func TestMarkersAroundOneDocument(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"---\ndata_dir: x\n", "---\ndata_dir: x\n...\n", "%YAML 1.2\n---\ndata_dir: x\n", "\ufeffdata_dir: x\n", "# c\n---\n# c\ndata_dir: x # c\n", "data_dir: x\r\n"} {
		loaded, err := read(text)
		require.NoError(t, err, text)
		require.Equal(t, "x", loaded.Config.DataDir)
	}
}

func TestUnreadableFile(t *testing.T) {
	t.Parallel()
	_, err := Load(Options{Path: filepath.Join(t.TempDir(), "none.yaml"), Environ: []string{}})
	require.ErrorIs(t, err, os.ErrNotExist)
	var invalid *InvalidError
	require.NotErrorAs(t, err, &invalid)
}
