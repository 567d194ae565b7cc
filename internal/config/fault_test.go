package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFaultsAreNamed(t *testing.T) {
	t.Parallel()
	key := `key: "0123456789abcdef"`
	cases := []struct{ name, text, want string }{
		{"unknown key", "server:\n  adress: x\n", "sluice.yaml:2:3: server.adress: is not known; did you mean address?"},
		{"unknown section", "servers: {}\n", "sluice.yaml:1:1: servers: is not known; did you mean server?"},
		{"unknown, nothing near", "routing: {zzzzzz: 1}", "sluice.yaml:1:11: routing.zzzzzz: is not known; known here: order, aliases, rules"},
		{"missing space", "server: {'address:x': 1}", "sluice.yaml:1:10: server.?: is a key that is not known; is there a space after the colon?"},
		{"text for int", "server:\n  max_in_flight: many\n", "sluice.yaml:2:18: server.max_in_flight: must be a whole number, not text"},
		{"quoted int", `server: {max_in_flight: "5"}`, "server.max_in_flight: must be a whole number, not text"},
		{"float for int", "server: {max_in_flight: 1.5}", "server.max_in_flight: must be a whole number"},
		{"int for duration", "server: {timeout: 5}", "server.timeout: must be a duration with its unit, such as 500ms, 30s or 5m, not a whole number"},
		{"int for text", "data_dir: 5", "sluice.yaml:1:11: data_dir: must be text, not a whole number; put it in quotes"},
		{"bool for text", "data_dir: true", "data_dir: must be text, not true or false; put it in quotes"},
		{"nothing for text", "data_dir:", "data_dir: must be text, not nothing; remove the key to keep the default"},
		{"section for text", "data_dir: {a: 1}", "sluice.yaml:1:1: data_dir: must be text, not a section"},
		{"text for section", "server: x", "sluice.yaml:1:9: server: must be a section with settings below it, not text"},
		{"text for list", "routing: {order: x}", "routing.order: must be a list"},
		{"text for map", "providers: x", "sluice.yaml:1:12: providers: must be a section with names below it, not text"},
		{"list for root", "- x", "sluice.yaml: must be a section with settings below it, not a list"},
		{"infinity", "providers: {a: {type: sim, sim: {failure_rate: .inf}}}", "providers.a.sim.failure_rate: must be a number, not something else"},
		{"too large", "server: {max_in_flight: 1000001}", "server.max_in_flight: must be from 1 to 1000000"},
		{"beyond int", "server: {max_in_flight: 99999999999999999999}", "server.max_in_flight: must be a whole number"},
		{"too small", "server: {keepalive: 1ms}", "server.keepalive: must be from 10ms to 10m"},
		{"negative", "server: {timeout: -5s}", "server.timeout: must be a duration"},
		{"size", "server: {max_body_bytes: 2GiB}", "server.max_body_bytes: must be from 1KiB to 1GiB"},
		{"size beyond int64", "server: {max_body_bytes: 99999999999TiB}", "server.max_body_bytes: must be a number of bytes"},
		{"share", "providers: {a: {type: sim, sim: {failure_rate: 1.1}}}", "providers.a.sim.failure_rate: must be from 0 to 1"},
		{"word", "observability: {log_level: loud}", "observability.log_level: must be one of debug, info, warn, error"},
		{"duplicate", "data_dir: a\nserver: {}\ndata_dir: b", "sluice.yaml:3:1: data_dir: is given a second time; the first is on line 1"},
		{"two documents", "data_dir: a\n---\ndata_dir: b\n", "sluice.yaml:2:1: a second document begins here; a configuration is one document"},
		{"tag", "data_dir: !!str x", "sluice.yaml:1:11: data_dir: has a YAML tag"},
		{"alias", "data_dir: *x", "data_dir: is an alias without an anchor before it"},
		{"alias of itself", "routing: {order: &x [*x]}", "routing.order[0]: is an alias without an anchor before it"},
		{"merge", "server: {<<: 5}", "server: merges something that is not a section"},
		{"syntax", "server: {address: x\n", "sluice.yaml:1:"},
		{"variable in flow", "server: {address: ${X}}", `inside { } or [ ] a variable needs quotes: "${NAME}"`},
		{"not text", "\xff\xfe", "sluice.yaml: is not UTF-8 text"},
		{"address", "server: {address: localhost}", "server.address: must be host:port"},
		{"port", "server: {address: ':65536'}", "server.address: must be host:port"},
		{"no address", "server: {address: ''}", "server.address: must not be empty"},
		{"health address", "observability: {address: x}", "observability.address: must be host:port"},
		{"data dir", "data_dir: ''", "data_dir: must not be empty"},
		{"body memory", "server: {max_body_bytes: 64MiB, body_memory: 32MiB}", "server.body_memory: must not be less than server.max_body_bytes"},
		{"drain delay", "server: {drain_timeout: 1s, drain_delay: 2s}", "server.drain_delay: must not be longer than server.drain_timeout"},
		{"bodies", "queue: {bodies_max_bytes: 16MiB}", "queue.bodies_max_bytes: must not be less than server.max_body_bytes"},
		{"resume window", "server: {resume_window: 20m}", "server.resume_window: must not be longer than queue.events_max_age"},
		{"queue url", "queue: {url: 'localhost:4222'}", "queue.url: must be nats://host:4222"},
		{"queue urls", "queue: {url: 'nats://a,http://b'}", "queue.url: must be nats://host:4222"},
		{"replicas", "queue: {replicas: 3}", "queue.replicas: must be 1 unless"},
		{"batch above all files", "files: {max_bytes: 1MiB, max_batch_bytes: 2MiB}", "files.max_batch_bytes: must not be more than files.max_bytes"},
		{"no room for a file", "files: {store_max_bytes: 1MiB}", "files.store_max_bytes: must not be less than files.max_bytes"},
		{"a line beyond a body", "server: {max_body_bytes: 1MiB}\nbatches: {max_line_bytes: 2MiB}", "sluice.yaml:2:27: batches.max_line_bytes: must not be more than server.max_body_bytes"},
		{"lines", "batches: {max_lines: 1000001}", "batches.max_lines: must be from 1 to 1000000"},
		{"the shares of all lanes", "queue: {lanes: {background_min_share: 0.6}}", "queue.lanes.background_min_share: must be from 0.01 to 0.5"},
		{"a wait for ever", "jobs: {max_wait: 1h}", "jobs.max_wait: must be from 0s to 10m"},
		{"password alone", "queue: {password: x}", "queue.password: needs queue.user beside it"},
		{"certificate alone", "queue: {tls: {cert_file: x}}", "queue.tls.cert_file: needs queue.tls.key_file"},
		{"key alone", "queue: {tls: {key_file: x}}", "queue.tls.key_file: needs queue.tls.cert_file"},
		{"store url", "store: {url: 'mysql://x'}", "store.url: must be postgres://"},
		{"key name", "auth: {keys: [{" + key + "}]}", "auth.keys[0].name: is empty"},
		{"key names", "auth:\n  keys:\n    - {name: a, " + key + "}\n    - {name: a, key: fedcba9876543210}", "sluice.yaml:4:14: auth.keys[1].name: is the name of an earlier key"},
		{"same keys", "auth: {keys: [{name: a, " + key + "}, {name: b, " + key + "}]}", "auth.keys[1].key: is the same as an earlier key"},
		{"short key", "auth: {keys: [{name: a, key: short}]}", "auth.keys[0].key: must have 16 characters or more"},
		{"tenant", "auth: {keys: [{name: a, tenant: '', " + key + "}]}", "auth.keys[0].tenant: is empty"},
		{"key's glob", "auth: {keys: [{name: a, models: ['['], " + key + "}]}", "sluice.yaml:1:34: auth.keys[0].models[0]: is neither a model's name nor a glob"},
		{"key's second model", "auth: {keys: [{name: a, models: [m, ''], " + key + "}]}", "auth.keys[0].models[1]: is neither a model's name nor a glob"},
		{"long tenant", "auth: {keys: [{name: a, tenant: " + strings.Repeat("t", 513) + ", " + key + "}]}", "auth.keys[0].tenant: is longer than 512 bytes"},
		{"key name of two lines", `auth: {keys: [{name: "a\nb", ` + key + "}]}", "auth.keys[0].name: has a control character"},
		{"expiry", "auth: {keys: [{name: a, expires_at: tomorrow, " + key + "}]}", "auth.keys[0].expires_at: must be an RFC 3339 time"},
		{"provider name", "providers: {OpenAI: {type: sim}}", "sluice.yaml:1:13: providers.OpenAI: must begin with a lower-case letter"},
		{"no type", "providers:\n  a:\n    concurrency: 1\n", "sluice.yaml:2:3: providers.a.type: is missing"},
		{"type", "providers: {a: {type: x}}", "providers.a.type: must be one of openai, anthropic, gemini, custom, sim"},
		{"azure elsewhere", "providers: {a: {type: gemini, azure: {api_version: v}, models: [m]}}", "providers.a.azure: is only for a provider of the type openai"},
		{"azure's version", "providers: {a: {type: openai, base_url: 'https://a', azure: {}, models: [m]}}", "providers.a.azure.api_version: is missing"},
		{"azure's models", "providers: {a: {type: openai, base_url: 'https://a', azure: {api_version: v}}}", "providers.a.models: is missing: Azure"},
		{"custom elsewhere", "providers: {a: {type: openai, base_url: 'https://a', custom: {}, models: [m]}}", "providers.a.custom: is only for a provider of the type custom"},
		{"custom without", "providers: {a: {type: custom, base_url: 'https://a', models: [m]}}", "providers.a.custom: is missing"},
		{"custom's models", "providers: {a: {type: custom, base_url: 'https://a', custom: {}}}", "providers.a.models: is missing; name the models"},
		{"custom's address", "providers: {a: {type: custom, custom: {}, models: [m]}}", "providers.a.base_url: is missing"},
		{"both keys", "providers: {a: {type: gemini, api_key: x, api_keys: [{key: y}]}}", "providers.a.api_keys: stands beside api_key"},
		{"empty key", "providers: {a: {type: gemini, api_keys: [{weight: 2}]}}", "providers.a.api_keys[0].key: must not be empty"},
		{"proxy", "providers: {a: {type: gemini, proxy: 'ftp://x'}}", "providers.a.proxy: must be an http, https or socks5 address"},
		{"policy without use", "providers: {a: {type: openai, base_url: 'https://a', on_unsupported: drop}}", "providers.a.on_unsupported: is only for the types anthropic and gemini"},
		{"keys without use", "providers: {a: {type: sim, api_keys: [{key: k}]}}", "providers.a.api_keys: is of no use"},
		{"headers without use", "providers: {a: {type: sim, headers: {a: b}}}", "providers.a.headers: is of no use"},
		{"proxy without use", "providers: {a: {type: sim, proxy: 'http://p'}}", "providers.a.proxy: is of no use"},
		{"map without use", "providers: {a: {type: sim, model_map: {a: b}}}", "providers.a.model_map: is of no use"},
		{"policy", "providers: {a: {type: gemini, on_unsupported: ignore}}", "providers.a.on_unsupported: must be one of reject, drop"},
		{"no base url", "providers: {a: {type: openai}}", "providers.a.base_url: is missing"},
		{"base url", "providers: {a: {type: openai, base_url: 'ftp://x'}}", "providers.a.base_url: must be an http or https address"},
		{"sim of another", openAI + "    sim: {}", "providers.openai.sim: is only for a provider of the type sim"},
		{"worker concurrency", openAI + "    worker_concurrency: 65", "providers.openai.worker_concurrency: must not be more than concurrency"},
		{"model glob", openAI + "    models: [gpt, '']", "sluice.yaml:5:19: providers.openai.models[1]: must be a model's name or a glob"},
		{"order", openAI + "routing: {order: [openai, other]}", "routing.order[1]: names no provider"},
		{"order twice", openAI + "routing: {order: [openai, openai]}", "routing.order[1]: names a provider a second time"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := problems(t, c.text)
			require.Len(t, got, 1, "one fault is reported once")
			require.Contains(t, got[0], c.want)
			require.True(t, strings.HasPrefix(got[0], "sluice.yaml"), got[0])
		})
	}
}

// Nothing is called missing from a file that cannot be read: it may well be there.
func TestAFileThatIsNoYAMLHasThatFaultAlone(t *testing.T) {
	t.Parallel()
	for _, role := range []Role{RoleServe, RoleIngress, RoleWorker} {
		for _, text := range []string{"queue: {url: 'nats://q'\n", "\xff", "queue: {}\n---\nqueue: {}\n"} {
			_, err := load([]byte(text), Options{Environ: []string{}, Path: "sluice.yaml", Role: role, Providers: []string{"a"}})
			invalid := new(InvalidError)
			require.ErrorAs(t, err, &invalid)
			require.Len(t, invalid.Faults, 1, "%s: %v", role, err)
			require.Contains(t, invalid.Faults[0].At, "sluice.yaml")
		}
	}
}

func TestAllFaultsAreReportedInOrderAndBounded(t *testing.T) {
	t.Parallel()
	got := problems(t, "data_dir: 5\nserver: {timeout: x}\nqueue: {replicas: 9}\nstore: {url: x}\n",
		"SLUICE_SERVER_KEEPALIVE=often")
	require.Len(t, got, 5)
	for i, want := range []string{
		"sluice.yaml:1:11: data_dir", "sluice.yaml:2:19: server.timeout", "sluice.yaml:3:19: queue.replicas", "sluice.yaml:4:14: store.url",
		"environment variable SLUICE_SERVER_KEEPALIVE: server.keepalive: must be a duration",
	} {
		require.Contains(t, got[i], want)
	}

	var many strings.Builder
	for i := range 50 {
		fmt.Fprintf(&many, "zz%d: 1\n", i)
	}
	got = problems(t, many.String())
	require.Len(t, got, maxFaults+1)
	require.Equal(t, "and 30 more", got[maxFaults])
}

func TestFaultsUnwrap(t *testing.T) {
	t.Parallel()
	_, err := read("data_dir: 5")
	var fault Fault
	require.ErrorAs(t, err, &fault)
	require.Equal(t, "data_dir", fault.Path)
	require.Equal(t, "sluice.yaml:1:11", fault.At)
}

func TestBounds(t *testing.T) {
	t.Parallel()
	bomb := "providers:\n  a0: &a0 {type: sim, models: [" + strings.Repeat("m,", 1000) + "m]}\n"
	for i := range 200 {
		bomb += fmt.Sprintf("  b%d: *a0\n", i)
	}
	laughs := "x0: &x0 [a,a,a,a,a,a,a,a,a,a]\n"
	for i := range 12 {
		laughs += fmt.Sprintf("x%d: &x%d [*x%d,*x%d,*x%d,*x%d,*x%d,*x%d,*x%d,*x%d]\n", i+1, i+1, i, i, i, i, i, i, i, i)
	}
	cases := []struct{ name, text, want string }{
		{"file", strings.Repeat("#", maxFileBytes+1), "is larger than 1048576 bytes"},
		{"tokens", strings.Repeat("- a\n", maxTokens), "has more than 50000 YAML tokens"},
		{"brackets", strings.Repeat("[", 40000), "is nested more than 32 deep"},
		{"braces", strings.Repeat("{a: ", 12000), "is nested more than 32 deep"},
		{"dashes", strings.Repeat("- ", 40000), "is nested more than 32 deep"},
		{"anchors", strings.Repeat("&a ", 20000), "is nested more than 32 deep"},
		{"alias of a large list", bomb, "holds more than 50000 values"},
		{"aliases of aliases", laughs, "holds more than 50000 values"},
		{"moderate depth", strings.Repeat("[", 40) + strings.Repeat("]", 40), "is nested more than 32 deep"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			require.Contains(t, strings.Join(problems(t, c.text), "\n"), c.want)
		})
	}
}

// A long, flat file is within the bounds: depth is not counted along it.
func TestLongFileLoads(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	text.WriteString("providers:\n")
	for i := range 500 {
		fmt.Fprintf(&text, "  p%d:\n    type: sim\n    models:\n    - a\n    - b\n    sim:\n      failure_rate: 0\n", i)
	}
	loaded, err := read(text.String())
	require.NoError(t, err)
	require.Len(t, loaded.Config.Providers, 500)
}

func TestNoValueIsEverShown(t *testing.T) {
	t.Parallel()
	const secret = "hunter2-hunter2-hunter2"
	for _, text := range []string{
		"server: {timeout: %s}", "server: {max_in_flight: %s}", "server: {max_body_bytes: %s}", "server: {address: %s}",
		"server: %s", "%s", "- %s", "routing: {order: [%s]}", "observability: {log_level: %s}", "store: {url: '%s'}", "queue: {url: '%s'}",
		"store: {url: 'mysql://u:%s@h'}", "queue: {url: 'http://u:%s@h'}", "queue: {password: %s}", "admin: {address: %s, token: x}", "admin: {address: ':1', token: '%s x'}", "admin: {token: %s}",
		"providers: {a: {type: sim}}\nrouting: {rules: [{name: '%s x', targets: [{provider: %[1]s}]}], aliases: {'x %[1]s': ''}}",
		"providers: {a: {type: sim}}\nrouting: {rules: [{name: '%s x', targets: [{provider: a}]}, {name: b, targets: [{provider: a}]}]}",
		"routing: {rules: [{when: {all: [{headers: {x: '[%s'}}], any: [{stream: %[1]s}]}}]}", "routing: {rules: [{strategy: %s, sticky_header: %[1]s}]}", "providers: {a: {type: %s}}",
		"providers: {a: {type: openai, base_url: '%s'}}", "providers: {a: {type: openai, base_url: 'ftp://u:%s@x'}}", "auth: {keys: [{key: x, name: [%s]}]}",
		"auth: {keys: [{key: %s, name: a}, {key: %[1]s, name: a}]}", "auth: {keys: [{name: a, key: [%s]}]}", "auth: {keys: [{name: a, expires_at: %s}]}",
		"queue: {password:%s}", "queue: {token: \"%s}", "queue:\n  token: %s\n bad", "queue: {token: !%s x}", "queue: {token: *%s}",
		"queue: {token: \"\\%s\"}", "providers: {a: {models: ['[%s']}}", "queue: {token: '${%s'}", "queue: {token: '${A:-%s${B}}'}", "? [%s]\n: x",
	} {
		_, err := read(fmt.Sprintf(text, secret))
		require.Error(t, err, text)
		require.NotContains(t, err.Error(), secret, text)
		require.NotContains(t, err.Error(), "hunter2", text)
	}
	for _, name := range []string{
		"SERVER_TIMEOUT", "SERVER_ADDRESS", "QUEUE_URL", "STORE_URL", "OBSERVABILITY_LOG_LEVEL", "PROVIDERS_A_TYPE",
		"PROVIDERS_A_CONCURRENCY", "ROUTING_ORDER", "AUTH_KEYS_0_EXPIRES_AT",
	} {
		_, err := read("", "SLUICE_"+name+"="+secret)
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), secret)
		require.Contains(t, err.Error(), "environment variable SLUICE_"+name)
	}
}
