package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestVariables(t *testing.T) {
	t.Parallel()
	env := []string{"A=alpha", "EMPTY=", "N=7", "D=90s", "TRICK=x, y: {z: [1]}", "REF=${A}", "SIZE=64KiB", "F=0.25"}
	cases := []struct{ name, text, want string }{
		{"plain", "${A}", "alpha"},
		{"inside", "x-${A}-${N}-y", "x-alpha-7-y"},
		{"default unused", "${A:-beta}", "alpha"},
		{"default for unset", "${B:-beta}", "beta"},
		{"default for empty", "${EMPTY:-beta}", "beta"},
		{"empty default", "a${B:-}", "a"},
		{"set to nothing", "a${EMPTY}", "a"},
		{"escape", "$${A}", "${A}"},
		{"escape then variable", "$${${A}", "${alpha"},
		{"dollars", "$A $ $$", "$A $ $$"},
		{"no structure", "${TRICK}", "x, y: {z: [1]}"},
		{"once", "${REF}", "${A}"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			loaded, err := read("data_dir: '"+c.text+"'", env...)
			require.NoError(t, err)
			require.Equal(t, c.want, loaded.Config.DataDir)
		})
	}
	loaded, err := read(`
server: {max_in_flight: "${N}", timeout: "${D}", max_body_bytes: "${SIZE}", keepalive: "${X:-1s}"}
providers: {a: {type: "${T:-sim}", models: ["${A}*"], sim: {failure_rate: "${F}"}}}
`, env...)
	require.NoError(t, err)
	require.Equal(t, 7, loaded.Config.Server.MaxInFlight)
	require.Equal(t, 90*time.Second, loaded.Config.Server.Timeout)
	require.Equal(t, Size(65536), loaded.Config.Server.MaxBodyBytes)
	require.Equal(t, time.Second, loaded.Config.Server.Keepalive)
	require.Equal(t, []string{"alpha*"}, loaded.Config.Providers["a"].Models)
	require.InDelta(t, 0.25, loaded.Config.Providers["a"].Sim.FailureRate, 0)
}

func TestVariableFaults(t *testing.T) {
	t.Parallel()
	cases := []struct{ text, want string }{
		{"${NONE}", "sluice.yaml:1:11: data_dir: needs the environment variable NONE, which is not set; set it, or write ${NONE:-default}"},
		{"${A", "has ${ without }"},
		{"${}", "has a malformed variable"},
		{"${A-b}", "has a malformed variable"},
		{"${1A}", "has a malformed variable"},
		{"${A:-${B}}", "has a variable inside a variable's default"},
	}
	for _, c := range cases {
		t.Run(c.text, func(t *testing.T) {
			t.Parallel()
			got := problems(t, "data_dir: '"+c.text+"'", "A=1")
			require.Len(t, got, 1)
			require.Contains(t, got[0], c.want)
		})
	}
	require.Contains(t, problems(t, "server: {max_in_flight: '${A}'}", "A=x")[0], "server.max_in_flight: must be a whole number")
	require.Contains(t, problems(t, "server: {max_in_flight: '$${A}'}", "A=1")[0], "must be a whole number")
	require.Contains(t, problems(t, "data_dir: "+strings.Repeat("${A}", 1000), "A="+strings.Repeat("x", 5000))[0], "expand to too much text")
}

// Every scalar setting and every list of scalars must have its variable, and the
// variable must reach exactly that setting.
func TestEverySettingHasItsVariable(t *testing.T) {
	t.Parallel()
	walk(specOf(Config{}), nil, func(s *spec, p path) {
		if s.kind == kindStruct || s.kind == kindMap || s.name == "" || s.kind == kindList && s.elem.kind == kindStruct {
			return
		}
		name := strings.ToUpper(strings.NewReplacer("[", "", "]", "").Replace(strings.Join(p, "_")))
		got, ok := resolve(nil, specOf(Config{}), name)
		require.True(t, ok, name)
		require.Equal(t, p, got.path)

		root := &node{}
		f := newFaults()
		require.Empty(t, overlay(root, specOf(Config{}), map[string]string{envPrefix + name: "v"}, f))
		require.NoError(t, f.err())
		require.NotNil(t, root.lookup(p), name)
	})
}

func TestOverrides(t *testing.T) {
	t.Parallel()
	file := openAI + "    models: [a]\n  my-gpu: {type: sim}\n"
	loaded, err := read(file,
		"SLUICE_PROVIDERS_OPENAI_API_KEY=sk-${NOT_A_VARIABLE}",
		"SLUICE_PROVIDERS_OPENAI_MODELS= x , y,",
		"SLUICE_PROVIDERS_MY_GPU_WORKER_CONCURRENCY=3",
		"SLUICE_PROVIDERS_MY_GPU_SIM_FAILURE_RATE=0.5",
		"SLUICE_PROVIDERS_NEW_ONE_TYPE=sim",
		"SLUICE_PROVIDERS_NEW_ONE_IDLE_TIMEOUT=5s",
		"SLUICE_SERVER_MAX_BODY_BYTES=1MiB",
		"SLUICE_QUEUE_TLS_CA_FILE=/ca",
		"SLUICE_DATA_DIR=/d",
		"SLUICE_ROUTING_ORDER=my-gpu,openai",
		"SLUICE_RATE_LIMIT=x",
		"OTHER=1",
	)
	require.NoError(t, err)
	c := loaded.Config
	require.Equal(t, "sk-${NOT_A_VARIABLE}", c.Providers["openai"].APIKey.Reveal(), "the environment's own values are taken as they are")
	require.Equal(t, []string{"x", "y"}, c.Providers["openai"].Models)
	require.Equal(t, 3, c.Providers["my-gpu"].WorkerConcurrency)
	require.Equal(t, &Sim{FirstTokenDelay: 50 * time.Millisecond, TokensPerSecond: 50, FailureRate: 0.5, CompletionTokens: 64}, c.Providers["my-gpu"].Sim)
	require.Equal(t, 5*time.Second, c.Providers["new_one"].IdleTimeout)
	require.Len(t, c.Providers, 3)
	require.Equal(t, Size(1<<20), c.Server.MaxBodyBytes)
	require.Equal(t, "/ca", c.Queue.TLS.CAFile)
	require.Equal(t, "/d", c.DataDir)
	require.Equal(t, []string{"my-gpu", "openai"}, c.Routing.Order)
	require.Equal(t, []UnknownVariable{{Name: "SLUICE_RATE_LIMIT"}}, loaded.UnknownEnv)
}

func TestOverrideNames(t *testing.T) {
	t.Parallel()
	cases := []struct{ name, file, variable, want string }{
		{"longest setting", "", "PROVIDERS_A_WORKER_CONCURRENCY", "providers.a.worker_concurrency"},
		{"the file's name first", "a_worker: {}", "PROVIDERS_A_WORKER_CONCURRENCY", "providers.a_worker.concurrency"},
		{"the file's name with a dash", "a-worker: {}", "PROVIDERS_A_WORKER_CONCURRENCY", "providers.a-worker.concurrency"},
		{"exact before dash", "{a-b: {}, a_b: {}}", "PROVIDERS_A_B_TYPE", "providers.a_b.type"},
		{"setting of a setting", "", "PROVIDERS_MY_SIM_FAILURE_RATE", "providers.my.sim.failure_rate"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFaults()
			root, _ := parseFile("f", []byte("providers: {"+strings.Trim(c.file, "{}")+"}"), f)
			if c.file != "" && !strings.HasPrefix(c.file, "{") {
				root, _ = parseFile("f", []byte("providers:\n  "+c.file), f)
			}
			if strings.HasPrefix(c.file, "{") {
				root, _ = parseFile("f", []byte("providers: "+c.file), f)
			}
			require.NoError(t, f.err())
			got, ok := resolve(root, specOf(Config{}), c.variable)
			require.True(t, ok)
			require.False(t, got.clash)
			require.Equal(t, c.want, got.path.String())
		})
	}
	require.Equal(t, []string{"environment variable SLUICE_PROVIDERS_A_B_C_TYPE: providers.a-b_c.type: fits more than one name in the file; rename one of them"},
		problems(t, "providers: {a-b_c: {type: sim}, a_b-c: {type: sim}}", "SLUICE_PROVIDERS_A_B_C_TYPE=sim"))
}

func TestVariablesThatAreNoSettingsAreListed(t *testing.T) {
	t.Parallel()
	near := map[string]string{
		"SERVER_ADRESS":               "SERVER_ADDRESS",
		"SERVERADDRESS":               "SERVER_ADDRESS",
		"SERVER_TIMEOUTS":             "SERVER_TIMEOUT",
		"QUEUE_EVENT_MAX_AGE":         "QUEUE_EVENTS_MAX_AGE",
		"OBSERVABILTY_LOG_LEVEL":      "OBSERVABILITY_LOG_LEVEL",
		"LOG_LEVEL":                   "OBSERVABILITY_LOG_LEVEL",
		"CONFG":                       "CONFIG",
		"AUTH_KEYS_3_TENNANT":         "AUTH_KEYS_3_TENANT",
		"AUTH_KEYS_01_KEY":            "AUTH_KEYS_1_KEY",
		"PROVIDERS_OPENAI_API_KY":     "PROVIDERS_OPENAI_API_KEY",
		"PROVIDERS_OTHER_API_KY":      "PROVIDERS_OTHER_API_KEY",
		"PROVIDERS_MY_GPU_MAXQUEUED":  "PROVIDERS_MY_GPU_MAX_QUEUED",
		"PROVIDRES_MY_GPU_MAX_QUEUED": "PROVIDERS_MY_GPU_MAX_QUEUED",
		"SERVER_PORT":                 "",
		"NOTHING_OF_THE_KIND":         "",
		"":                            "",
		"SERVER_":                     "",
		"PROVIDERS":                   "",
		"AUTH_KEYS":                   "",
	}
	var environ []string
	for name := range near {
		environ = append(environ, envPrefix+name+"=80")
	}
	loaded, err := read(openAI+"  my-gpu: {type: sim}\n", environ...)
	require.NoError(t, err)
	require.Len(t, loaded.UnknownEnv, len(near))
	require.True(t, slices.IsSortedFunc(loaded.UnknownEnv, func(a, b UnknownVariable) int { return strings.Compare(a.Name, b.Name) }))
	for _, u := range loaded.UnknownEnv {
		want := near[strings.TrimPrefix(u.Name, envPrefix)]
		require.Equal(t, want, strings.TrimPrefix(u.Near, envPrefix), u.Name)
		require.Contains(t, u.String(), u.Name)
		require.Equal(t, u.Near != "", strings.Contains(u.String(), "did you mean "+envPrefix), u.String())
		require.NotContains(t, u.String(), "80", "no value is shown")
	}
}

func TestVariablesOfOthersAreLeftAlone(t *testing.T) {
	t.Parallel()
	loaded, err := read("", "OTHER=1", "SLUICE_CONFIG=x", "SLUICE_TEST_DATABASE_URL=x", "SLUICE_COVER_DIR=x", "SLUICE_E2E_OUTAGE=1m", "SLUICE_API_KEY=x",
		"SLUICE_PORT=tcp://10.0.0.1:80", "SLUICE_PORT_80_TCP=tcp://10.0.0.1:80", "SLUICE_PORT_80_TCP_ADDR=10.0.0.1", "SLUICE_SERVICE_HOST=10.0.0.1",
		"SLUICE_SERVICE_PORT=80", "SLUICE_SERVICE_PORT_HTTP=80", "SLUICE_SERVER_SERVICE_HOST=10.0.0.1", "SLUICE_SERVER_PORT=tcp://10.0.0.1:80")
	require.NoError(t, err)
	require.Equal(t, Default(), *loaded.Config)
	require.Empty(t, loaded.UnknownEnv)
}

func TestListElementsByIndex(t *testing.T) {
	t.Parallel()
	env := []string{
		"SLUICE_AUTH_KEYS_0_KEY=aaaaaaaaaaaaaaaa",
		"SLUICE_AUTH_KEYS_0_TENANT=t",
		"SLUICE_AUTH_KEYS_0_EXPIRES_AT=2030-01-31T00:00:00Z",
	}
	for i := 1; i < 12; i++ {
		env = append(env, fmt.Sprintf("SLUICE_AUTH_KEYS_%d_NAME=k%d", i, i), fmt.Sprintf("SLUICE_AUTH_KEYS_%d_KEY=%016d", i, i))
	}
	loaded, err := read("auth: {keys: [{name: first, key: '${UNSET}'}]}", env...)
	require.NoError(t, err)
	keys := loaded.Config.Auth.Keys
	require.Len(t, keys, 12)
	require.Equal(t, "first", keys[0].Name)
	require.Equal(t, "aaaaaaaaaaaaaaaa", keys[0].Key.Reveal(), "an overridden variable need not be set")
	require.Equal(t, "t", keys[0].Tenant)
	require.Equal(t, 2030, keys[0].ExpiresAt.Year())
	require.Equal(t, "default", keys[11].Tenant)
	require.Equal(t, "k11", keys[11].Name)

	got := problems(t, "", "SLUICE_AUTH_KEYS_5_KEY=aaaaaaaaaaaaaaaa")
	require.Equal(t, []string{"environment variable SLUICE_AUTH_KEYS_5_KEY: auth.keys[5].key: leaves a gap in the list; the next element is 0"}, got)
	got = problems(t, "auth: 5", "SLUICE_AUTH_KEYS_0_KEY=aaaaaaaaaaaaaaaa")
	require.Equal(t, []string{"sluice.yaml:1:7: auth: must be a section with settings below it, not a whole number"}, got)
}

func TestRoles(t *testing.T) {
	t.Parallel()
	// One file for every role, with variables that each machine has only in part.
	shared := `
queue: {url: "nats://q:4222", user: u, password: "${QUEUE_PASSWORD:-none}"}
store: {url: "${DATABASE_URL}"}
auth: {keys: [{name: a, key: "${CLIENT_KEY}"}]}
providers:
  a: {type: openai, base_url: "http://a/v1", api_key: "${A_KEY}", models: [m]}
  b: {type: openai, base_url: "${B_URL}", api_key: "${B_KEY}"}
`
	get := func(role Role, providers []string, environ ...string) (*Config, error) {
		loaded, err := load([]byte(shared), Options{Path: "f", Environ: environ, Role: role, Providers: providers})
		if err != nil {
			return nil, err
		}
		return loaded.Config, nil
	}
	client := []string{"DATABASE_URL=postgres://db/x", "CLIENT_KEY=0123456789abcdef"}
	upstream := []string{"A_KEY=ka", "B_KEY=kb", "B_URL=http://b/v1"}

	c, err := get(RoleIngress, nil, append(client, upstream...)...)
	require.NoError(t, err)
	require.Equal(t, URL("postgres://db/x"), c.Store.URL)
	require.Len(t, c.Auth.Keys, 1)
	require.Equal(t, []string{"m"}, c.Providers["a"].Models)
	for _, p := range c.Providers {
		require.Empty(t, p.APIKey.Reveal(), "an ingress is given no provider's secret")
		require.Empty(t, p.BaseURL.Reveal(), "an ingress is given no provider's address")
	}
	_, err = get(RoleIngress, nil, client...)
	require.NoError(t, err, "an ingress needs no provider's variables")
	_, err = get(RoleIngress, nil)
	require.ErrorContains(t, err, "DATABASE_URL")

	c, err = get(RoleWorker, nil, append(client, upstream...)...)
	require.NoError(t, err)
	require.Empty(t, c.Store.URL.Reveal(), "a worker is given no database")
	require.Empty(t, c.Auth.Keys, "a worker is given no client's key")
	require.Equal(t, "kb", c.Providers["b"].APIKey.Reveal())
	_, err = get(RoleWorker, nil, "A_KEY=ka")
	require.ErrorContains(t, err, "B_KEY")

	c, err = get(RoleWorker, []string{"a"}, upstream...)
	require.NoError(t, err)
	require.Equal(t, "ka", c.Providers["a"].APIKey.Reveal())
	require.Empty(t, c.Providers["b"].APIKey.Reveal(), "a worker is given only its own provider's secret")
	_, err = get(RoleWorker, []string{"a"}, "A_KEY=ka")
	require.NoError(t, err)

	_, err = get(RoleServe, nil, append(client, upstream...)...)
	require.NoError(t, err)

	shared = strings.ReplaceAll(shared, ":-none", "")
	c, err = get(RoleAdmin, nil, "DATABASE_URL=postgres://db/x")
	require.NoError(t, err, "a command on the database needs what leads there")
	require.Equal(t, URL("postgres://db/x"), c.Store.URL)
	require.Empty(t, c.Queue.URL.Reveal())
	require.Equal(t, 10*time.Minute, c.Server.Timeout, "the rest is as if it were not set")
	_, err = get(RoleAdmin, nil)
	require.ErrorContains(t, err, "DATABASE_URL")
	_, err = get(RoleIngress, nil, client...)
	require.ErrorContains(t, err, "QUEUE_PASSWORD")

	for _, role := range []Role{RoleIngress, RoleWorker} {
		_, err = load(nil, Options{Environ: []string{}, Role: role})
		require.ErrorContains(t, err, "queue.url: must name a NATS server")
		require.ErrorContains(t, err, "providers: must name at least one provider")
	}
}

// What is withheld is still held to its form.
func TestWithheldSettingsAreChecked(t *testing.T) {
	t.Parallel()
	_, err := load([]byte("queue: {url: 'nats://q'}\nproviders: {a: {api_key: 5}}"), Options{Environ: []string{}, Role: RoleIngress})
	require.ErrorContains(t, err, "providers.a.api_key: must be text")
	_, err = load([]byte("queue: {url: 'nats://q'}\nauth: {keys: [{nam: x}]}\n"+"providers: {a: {type: sim}}"), Options{Environ: []string{}, Role: RoleWorker})
	require.ErrorContains(t, err, "auth.keys[0].nam: is not known; did you mean name?")
}
