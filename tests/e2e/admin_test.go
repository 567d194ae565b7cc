package e2e_test

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
)

// administration is an operator at the command line of a running server.
type administration struct {
	t       *testing.T
	p       *process
	dir     string
	env     []string // of the operator's commands
	secrets []string // that were shown, and may be shown nowhere else
}

// try runs a command and returns how it ended.
func (a *administration) try(line string) (code int, stdout, stderr string) {
	a.t.Helper()
	return execute(a.t, command{dir: a.dir, env: a.env, args: strings.Fields(line)})
}

func (a *administration) do(line string) (stdout string) {
	a.t.Helper()
	code, stdout, stderr := a.try(line)
	require.Zero(a.t, code, "%s: %s", line, stderr)
	return stdout
}

// secret runs a command that shows a secret.
func (a *administration) secret(line string) string {
	a.t.Helper()
	secret := strings.TrimSpace(a.do(line))
	require.Regexp(a.t, `^sk-sluice-\S+$`, secret, "standard output holds the key alone, to be piped")
	a.secrets = append(a.secrets, secret)
	return secret
}

// ask makes a short call and returns its status and its answer.
func (a *administration) ask(key string) (status int, answer string) {
	a.t.Helper()
	resp, err := newClient(a.t, a.p.address(), key).post(a.t.Context(), `{"model":"sim","max_tokens":1,"messages":[{"role":"user","content":"Hello!"}]}`, nil)
	require.NoError(a.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(a.t, err)
	return resp.StatusCode, string(body)
}

// becomes waits until calls with the key are answered so, which every ingress does within
// seconds of a change, and returns the answer.
func (a *administration) becomes(status int, key string) (answer string) {
	a.t.Helper()
	since := time.Now()
	require.Eventually(a.t, func() bool {
		var got int
		got, answer = a.ask(key)
		return got == status
	}, patience, pollEvery, "not answered %d", status)
	require.Less(a.t, time.Since(since), revocationBound)
	return answer
}

type auditLine struct {
	At                    time.Time
	Actor, Action, Target string
	Before, After         map[string]any
}

func (a *administration) audit(flags string) (lines []auditLine) {
	a.t.Helper()
	for line := range strings.Lines(a.do("audit list --json " + flags)) {
		var entry auditLine
		require.NoError(a.t, json.Unmarshal([]byte(line), &entry))
		require.WithinDuration(a.t, time.Now(), entry.At, time.Minute)
		lines = append(lines, entry)
	}
	return lines
}

// databases are those that everything is administered on, each with the variables that have
// a process use it.
var databases = map[string]func(*testing.T) []string{
	"sqlite": func(*testing.T) []string { return nil },
	"postgres": func(t *testing.T) []string {
		t.Helper()
		database := "SLUICE_STORE_URL=" + testkit.Postgres(t)
		code, _, stderr := execute(t, command{env: []string{database}, args: []string{"migrate"}})
		require.Zero(t, code, stderr)
		return []string{database}
	},
}

// TestAdministration goes an operator's whole way with keys, tenants and the audit, on
// either database, through a running ingress and at the database itself.
func TestAdministration(t *testing.T) {
	t.Parallel()
	for name, database := range databases {
		t.Run(name+", asking the ingress", func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			config := filepath.Join(dir, "operators.yaml")
			require.NoError(t, os.WriteFile(config, []byte("admin: {operators: [{name: on-call, token: on-call-token-0123456789}, {name: dashboards, token: dashboards-token-0123456789, role: viewer}]}\n"), 0o600))
			p := serving(t, dir, append(database(t), "SLUICE_ADMIN_ADDRESS=127.0.0.1:0", "SLUICE_ADMIN_TOKEN="+hookToken, "SLUICE_CONFIG="+config)...)
			address := "SLUICE_ADMIN_ADDRESS=" + operatorsAddress(p)
			a := &administration{t: t, p: p, dir: t.TempDir(), env: []string{address, "SLUICE_ADMIN_TOKEN=on-call-token-0123456789"}}
			a.walk("on-call")
			a.env[1] = "SLUICE_ADMIN_TOKEN=dashboards-token-0123456789"
			require.Contains(t, a.do("keys list"), "web")
			code, _, stderr := a.try("keys create mine")
			require.Equal(t, 1, code)
			require.Contains(t, stderr, `The operator \"dashboards\" may look`)
			a.env[1] = "SLUICE_ADMIN_TOKEN=" + hookToken
			a.webhooks()
		})
		t.Run(name+", at the database", func(t *testing.T) {
			t.Parallel()
			dir, env := t.TempDir(), database(t)
			a := &administration{t: t, p: serving(t, dir, env...), dir: dir, env: env}
			a.walk(`cli(:.+)?`)
		})
	}
}

func (a *administration) walk(actor string) {
	t := a.t
	t.Helper()
	limits := filepath.Join(t.TempDir(), "limits.json")
	require.NoError(t, os.WriteFile(limits, []byte(`{"tokens_per_minute": 90000, "models": [{"models": ["gpt-4o*"], "concurrent": 2}]}`), 0o600))
	first := a.secret("keys create ci --tenant research --requests-per-minute 600 --budget-month 99.5 --limits " + limits)
	status, answer := a.ask(first)
	require.Equal(t, http.StatusOK, status, answer)
	var key struct {
		ID, Display string
		Limits      map[string]any
	}
	require.NoError(t, json.Unmarshal([]byte(a.do("keys show ci")), &key))
	require.Equal(t, map[string]any{
		"requests_per_minute": 600., "tokens_per_minute": 90000., "budget": map[string]any{"month": 99.5},
		"models": []any{map[string]any{"models": []any{"gpt-4o*"}, "concurrent": 2.}},
	}, key.Limits)

	a.do("keys update ci --requests-per-minute 700 --name web --models sim-none")
	require.Contains(t, a.becomes(http.StatusForbidden, first), "model_not_allowed")
	a.do("keys update web --models sim --on-limit queue")
	a.becomes(http.StatusOK, first)
	code, _, stderr := a.try("keys update ci --no-limits")
	require.Equal(t, 1, code, "it has another name now")
	require.Contains(t, stderr, "keys list")

	second := a.secret("keys rotate web --overlap 4s")
	for _, secret := range []string{first, second} {
		status, answer := a.ask(secret)
		require.Equal(t, http.StatusOK, status, answer)
	}
	require.Eventually(t, func() bool { s, _ := a.ask(first); return s == http.StatusUnauthorized }, patience, pollEvery)
	_, answer = a.ask(first)
	require.Contains(t, answer, "was rotated")
	third := a.secret("keys rotate web --overlap 1h")
	a.becomes(http.StatusOK, second)
	fourth := a.secret("keys rotate web --overlap 0s")
	for _, old := range []string{second, third} {
		require.Contains(t, a.becomes(http.StatusUnauthorized, old), "was rotated")
	}

	a.do("tenants set research --concurrent 9 --disable")
	require.Contains(t, a.becomes(http.StatusForbidden, fourth), "tenant_disabled")
	require.Regexp(t, `research +disabled +\{"concurrent":9\}`, a.do("tenants list"))
	code, _, stderr = a.try("tenants delete research")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "enable it first")
	a.do("tenants set research --enable --budget-day 7")
	a.becomes(http.StatusOK, fourth)
	a.do("tenants delete research")

	a.do("keys revoke web")
	require.Contains(t, a.becomes(http.StatusUnauthorized, fourth), "revoked")
	a.requireAudited(actor, key.ID)
}

// requireAudited has each change in the audit with who, what, before and after, and no
// secret anywhere.
func (a *administration) requireAudited(actor, id string) {
	t := a.t
	t.Helper()
	var actions []string
	entries := a.audit("--target key:" + id)
	for _, e := range entries {
		actions = append(actions, e.Action)
		require.Regexp(t, "^"+actor+"$", e.Actor)
	}
	require.Equal(t, []string{"key.revoke", "key.rotate", "key.rotate", "key.rotate", "key.update", "key.update", "key.create"}, actions)
	require.Empty(t, entries[6].Before)
	require.Equal(t, "ci", entries[6].After["name"])
	renamed := entries[5]
	require.Equal(t, "ci", renamed.Before["name"])
	require.Equal(t, "web", renamed.After["name"])
	require.EqualValues(t, 600, renamed.Before["limits"].(map[string]any)["requests_per_minute"])
	require.EqualValues(t, 700, renamed.After["limits"].(map[string]any)["requests_per_minute"])
	require.EqualValues(t, 90000, renamed.After["limits"].(map[string]any)["tokens_per_minute"], "what is not named stays")
	require.NotEqual(t, entries[3].Before["display"], entries[3].After["display"])
	require.NotContains(t, entries[0].Before, "revoked_at")
	require.Contains(t, entries[0].After, "revoked_at")

	tenants := a.audit("--target tenant:research")
	require.Len(t, tenants, 3)
	require.Equal(t, "tenant.delete", tenants[0].Action)
	require.Empty(t, tenants[0].After)
	require.Equal(t, map[string]any{"disabled": true, "limits": map[string]any{"concurrent": 9.}}, tenants[1].Before)
	require.Equal(t, map[string]any{"disabled": false, "limits": map[string]any{"concurrent": 9., "budget": map[string]any{"day": 7.}}}, tenants[1].After)

	table := a.do("audit list --limit 5")
	require.Equal(t, 6, strings.Count(table, "\n"))
	require.Regexp(t, `(?m)^\S+Z +`+actor+` +key.revoke +key:`+regexp.QuoteMeta(id)+` +revoked_at: nothing → "`, table)
	require.Regexp(t, `(?m)^\S+Z +serve +key.create +`, a.do("audit list --actor serve"), "the first key is somebody's, too")
	everything := table + a.do("audit list --json") + a.do("keys list --json") + a.p.stdout.String() + a.p.stderr.String()
	for _, secret := range a.secrets {
		require.NotContains(t, everything, secret)
	}
}

// webhooks has what is done about webhooks in the audit as well.
func (a *administration) webhooks() {
	t := a.t
	t.Helper()
	a.do("webhooks create https://example.com/in --tenant research --events job.failed")
	entries := a.audit("--action webhook.create")
	require.Len(t, entries, 1)
	require.Equal(t, "admin", entries[0].Actor)
	id := strings.TrimPrefix(entries[0].Target, "webhook:")
	a.do("webhooks rotate " + id)
	a.do("webhooks delete " + id)
	code, _, _ := a.try("webhooks delete " + id)
	require.Equal(t, 1, code)
	entries = a.audit("--target webhook:" + id)
	require.Len(t, entries, 3, "what was not there was not changed")
	require.Equal(t, "https://example.com", entries[0].Before["url"])
	require.Empty(t, entries[0].After)
	require.NotContains(t, a.do("audit list --json"), "whsec_")
}
