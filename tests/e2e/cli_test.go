package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCommandLines(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		line           string
		code           int
		stdout, stderr string // what each must hold; empty: it must be empty
	}{
		{line: "version", stdout: "sluice v0.0.0-e2e"},
		{line: "--version", stdout: "sluice v0.0.0-e2e"},
		{line: "", stdout: "Usage:"},
		{line: "config validate", stdout: "valid"},
		{line: "--nonsense", code: 2, stderr: "unknown flag: --nonsense"},
		{line: "serve --nonsense", code: 2, stderr: "unknown flag: --nonsense"},
		{line: "nonsense", code: 2, stderr: `unknown command "nonsense"`},
		{line: "help nonsense", code: 2, stderr: `unknown command "nonsense"`},
		{line: "help keys nonsense", code: 2, stderr: `unknown command "keys nonsense"`},
		{line: "help keys create", stdout: "Make an API key"},
		{line: "serve now", code: 2, stderr: "takes no argument"},
		{line: "keys nonsense", code: 2, stderr: `unknown command "nonsense"`},
		{line: "keys create", code: 2, stderr: "takes one name"},
		{line: "keys create x --expires soon", code: 2, stderr: "--expires"},
		{line: "keys create x --models gpt-[", code: 2, stderr: "key model 1 is neither a model's name nor a glob"},
		{line: "keys create x --tenant=", code: 2, stderr: "key tenant is empty"},
		{line: "keys create x --queued many", code: 2, stderr: "--queued"},
		{line: "keys create x --queued=-1", code: 2, stderr: "queued must be from 0"},
		{line: "keys create x --budget-day 1,50", code: 2, stderr: "--budget-day is no amount of money"},
		{line: "keys create x --on-limit wait", code: 2, stderr: "on_limit must be refuse or queue"},
		{line: "keys create x --limits worker.yaml", code: 1, stderr: "--limits worker.yaml"},
		{line: "keys create x --limits missing.json", code: 1, stderr: "missing.json"},
		{line: "keys create x --no-limits", code: 2, stderr: "unknown flag: --no-limits"},
		{line: "keys update x", code: 2, stderr: "has nothing to change"},
		{line: "keys update x --expires 1h --never-expires", code: 2, stderr: "exclude each other"},
		{line: "keys rotate x --overlap soon", code: 2, stderr: "--overlap"},
		{line: "keys show", code: 2, stderr: "takes one name"},
		{line: "tenants nonsense", code: 2, stderr: `unknown command "nonsense"`},
		{line: "tenants set x", code: 2, stderr: "has nothing to set"},
		{line: "tenants set x --disable --enable", code: 2, stderr: "exclude each other"},
		{line: "audit nonsense", code: 2, stderr: `unknown command "nonsense"`},
		{line: "audit list --limit 0", code: 2, stderr: "--limit must be positive"},
		{line: "audit list", code: 1, stderr: "sluice migrate"},
		{line: "webhooks nonsense", code: 2, stderr: `unknown command "nonsense"`},
		{line: "webhooks create", code: 2, stderr: "takes one name"},
		{line: "webhooks rotate whk_x --overlap soon", code: 2, stderr: "--overlap"},
		{line: "webhooks redeliver", code: 2, stderr: "takes an event's id"},
		{line: "webhooks log a b", code: 2, stderr: "takes one id at most"},
		{line: "webhooks list", code: 1, stderr: "needs admin.address and admin.token"},
		{line: "providers nonsense", code: 2, stderr: `unknown command "nonsense"`},
		{line: "providers pause", code: 2, stderr: "takes one name"},
		{line: "providers pause x --for -1s", code: 2, stderr: "--for must be positive"},
		{line: "providers resume x --for 1s", code: 2, stderr: "unknown flag: --for"},
		{line: "providers list", code: 1, stderr: "needs admin.address and admin.token"},
		{line: "queues purge x", code: 2, stderr: "say --yes"},
		{line: "queues purge x --yes", code: 1, stderr: "needs admin.address and admin.token"},
		{line: "dead-letters drop dead_1", code: 2, stderr: "say --yes"},
		{line: "dead-letters drop --yes", code: 2, stderr: "takes one id, or --all"},
		{line: "dead-letters requeue dead_1 --all", code: 2, stderr: "takes one id, or --all"},
		{line: "dead-letters requeue dead_1 --provider up", code: 2, stderr: "--provider goes with --all"},
		{line: "dead-letters drop dead_1 --limit 3 --yes", code: 2, stderr: "--limit goes with --all"},
		{line: "webhooks secret --overlap 1h", code: 2, stderr: "--overlap goes with --rotate"},
		{line: "usage --group-by moon", code: 2, stderr: "--group-by must be names of"},
		{line: "usage --from soon", code: 2, stderr: "--from must be a day, such as 2026-01-31,"},
		{line: "cache purge", code: 2, stderr: "write --model, --tenant or --key, or --all"},
		{line: "cache show", code: 1, stderr: "needs admin.address and admin.token"},
		{line: "config show --live --role worker", code: 2, stderr: "do not go with --live"},
		{line: "config reload", code: 1, stderr: "needs admin.address and admin.token"},
		{line: "route explain", code: 2, stderr: "--model is missing"},
		{line: "config nonsense", code: 2, stderr: `unknown command "nonsense"`},
		{line: "config validate --role king", code: 2, stderr: "--role king"},
		{line: "config validate --provider up", code: 2, stderr: "--role worker"},
		{line: "config validate --role worker --config worker.yaml", code: 1, stderr: "UP_SECRET"},
		{line: "config validate --role worker --provider up --config worker.yaml", code: 1, stderr: "UP_SECRET"},
		{line: "config validate --role worker --provider free --config worker.yaml", stdout: "valid"},
		{line: "config show --role worker -p free --config worker.yaml", stdout: "free:"},
		{line: "config validate --role worker --provider x,free --config worker.yaml", code: 2, stderr: `it has ["free" "up"]`},
		{line: "serve --config missing.yaml", code: 1, stderr: "missing.yaml: no such file"},
		{line: "worker", code: 2, stderr: "--provider is missing"},
		{line: "worker --provider x", code: 1, stderr: "queue.url: must name a NATS server"},
		{line: "ingress", code: 1, stderr: "queue.url: must name a NATS server"},
		{line: "worker --config worker.yaml --provider x", code: 2, stderr: `it has ["free" "up"]`},
	} {
		t.Run(test.line, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			worker := "queue: {url: \"nats://127.0.0.1:1\"}\nproviders: {free: {type: sim}, up: {type: sim, api_key: \"${UP_SECRET}\"}}\n"
			require.NoError(t, os.WriteFile(filepath.Join(dir, "worker.yaml"), []byte(worker), 0o600))
			code, stdout, stderr := execute(t, command{dir: dir, args: strings.Fields(test.line)})
			require.Equal(t, test.code, code, stderr)
			for text, want := range map[string]string{stdout: test.stdout, stderr: test.stderr} {
				if want == "" {
					require.Empty(t, text)
				}
				require.Contains(t, text, want)
			}
		})
	}
}

func TestHelpTextsHaveExamples(t *testing.T) {
	t.Parallel()
	seen := 0
	for names := []string{""}; len(names) > 0; names = names[1:] {
		name := names[0]
		code, stdout, stderr := execute(t, command{args: append(strings.Fields(name), "--help")})
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, "Examples:", "sluice %s --help", name)
		require.Contains(t, stdout, "sluice "+name, "sluice %s --help", name)
		for line := range strings.Lines(stdout) {
			require.LessOrEqual(t, len(strings.TrimSpace(line)), 200, "sluice %s --help: %s", name, line)
		}
		_, below, _ := strings.Cut(stdout, "Available Commands:\n")
		below, _, _ = strings.Cut(below, "\n\n")
		for line := range strings.Lines(below) {
			names = append(names, strings.TrimSpace(name+" "+strings.Fields(line)[0]))
		}
		seen++
	}
	require.Greater(t, seen, 50, "the commands below a command are found")
}

func TestBadConfigurationIsRefusedBeforeAnythingStarts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, file string
		want       []string
	}{
		{"unknown key", "server:\n  adress: 127.0.0.1:0\n", []string{"bad.yaml:2", "server.adress", "address"}},
		{"wrong type", "server:\n  timeout: [1]\n", []string{"bad.yaml:2", "server.timeout"}},
		{"missing variable", "store:\n  url: ${E2E_NOT_SET}\n", []string{"bad.yaml:2", "store.url", "E2E_NOT_SET"}},
		{"no YAML", "server: {\n", []string{"bad.yaml"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, line := range []string{"serve", "config validate", "config show", "migrate", "keys list"} {
				dir := t.TempDir()
				require.NoError(t, os.WriteFile(filepath.Join(dir, "bad.yaml"), []byte(test.file), 0o600))
				args := append(strings.Fields(line), "--config", "bad.yaml")
				code, stdout, stderr := execute(t, command{dir: dir, args: args})
				require.Equal(t, 1, code, line)
				require.Empty(t, stdout, line)
				for _, w := range test.want {
					require.Contains(t, stderr, w, line)
				}
				_, err := os.Stat(filepath.Join(dir, "data"))
				require.ErrorIs(t, err, os.ErrNotExist, "%s: nothing was made", line)
			}
		})
	}
	t.Run("in the environment", func(t *testing.T) {
		t.Parallel()
		code, _, stderr := execute(t, command{env: []string{"SLUICE_SERVER_TIMEOUT=soon"}, args: []string{"serve"}})
		require.Equal(t, 1, code)
		require.Contains(t, stderr, "SLUICE_SERVER_TIMEOUT")
		require.Contains(t, stderr, "server.timeout")
	})
}

func TestVariablesThatAreNoSettingsAreWarnedOf(t *testing.T) {
	t.Parallel()
	env := []string{anyPort, "SLUICE_SERVER_TIMEOUTT=1m", "SLUICE_SERVICE_HOST=10.0.0.1", "SLUICE_TEST_X=1"}
	for _, line := range []string{"config validate", "config show", "migrate"} {
		code, _, stderr := execute(t, command{env: env, args: strings.Fields(line)})
		require.Zero(t, code, "%s: it is a warning", line)
		require.Equal(t, "sluice: warning: environment variable SLUICE_SERVER_TIMEOUTT is no setting; did you mean SLUICE_SERVER_TIMEOUT?\n", stderr, line)
	}
	p := serving(t, t.TempDir(), env...)
	require.Regexp(t, `"level":"WARN".*"SLUICE_SERVER_TIMEOUTT".*"SLUICE_SERVER_TIMEOUT"`, p.stderr.String())
	require.NotContains(t, p.stderr.String(), "SLUICE_SERVICE_HOST")
}

func TestConfigShowAndSchema(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "c.yaml"), []byte(`server: {address: "127.0.0.1:1"}
auth: {keys: [{name: dev, key: "sk-never-shown-0123456789"}]}
providers:
  up: {type: openai, base_url: "http://127.0.0.1:1/v1", proxy: "http://me:hidden@127.0.0.1:2", api_key: "${SECRET}"}
store: {url: "postgres://me:hidden@127.0.0.1:1/db"}
`), 0o600))
	code, stdout, stderr := execute(t, command{
		dir: dir, env: []string{"SECRET=sk-not-this-either", "SLUICE_SERVER_ADDRESS=127.0.0.1:2"},
		args: []string{"config", "show", "--config", "c.yaml"},
	})
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "127.0.0.1:2", "the environment comes before the file")
	for _, secret := range []string{"never-shown", "not-this-either", "hidden"} {
		require.NotContains(t, stdout+stderr, secret)
	}
	code, stdout, stderr = execute(t, command{args: []string{"config", "schema"}})
	require.Zero(t, code, stderr)
	var schema struct {
		Properties map[string]any `json:"properties"`
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &schema))
	for _, section := range []string{"server", "queue", "store", "auth", "providers", "routing", "rate_limit", "cache", "observability"} {
		require.Contains(t, schema.Properties, section)
	}
}
