package e2e_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/apikey"
	"sluice/internal/testkit"
)

const configuredKey = "sk-e2e-in-the-file-0123456789"

// withKey writes a configuration that has a key of its own.
func withKey(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sluice.yaml")
	require.NoError(t, os.WriteFile(path, []byte("auth: {keys: [{name: app, key: "+configuredKey+"}]}\n"), 0o600))
	return path
}

// reach makes a short call and returns its status.
func reach(t *testing.T, p *process, key string) int {
	t.Helper()
	resp, err := newClient(t, p.address(), key).post(t.Context(), `{"model":"sim","max_tokens":1,"messages":[{"role":"user","content":"Hello!"}]}`, nil)
	require.NoError(t, err)
	return drop(resp)
}

// newKey makes a key as the welcome says.
func newKey(t *testing.T, database string) string {
	t.Helper()
	code, stdout, stderr := execute(t, command{env: []string{database}, args: []string{"keys", "create", "made-later"}})
	require.Zero(t, code, stderr)
	return strings.TrimSpace(stdout)
}

func TestServeStartsWhileItsDatabaseIsDown(t *testing.T) {
	t.Parallel()
	pg := testkit.PostgresServer(t)
	database := "SLUICE_STORE_URL=" + pg.URL()
	code, _, stderr := execute(t, command{env: []string{database}, args: []string{"migrate"}})
	require.Zero(t, code, stderr)
	pg.Stop()

	withFile := serving(t, t.TempDir(), database, "SLUICE_CONFIG="+withKey(t))
	require.Contains(t, withFile.stdout.String(), "The database cannot be reached")
	require.Contains(t, withFile.stdout.String(), "The keys of the configuration work meanwhile")
	require.Contains(t, withFile.stdout.String(), "sluice keys create")
	require.Equal(t, http.StatusOK, reach(t, withFile, configuredKey), "the file's keys need no database")

	without := serving(t, t.TempDir(), database)
	require.Contains(t, without.stdout.String(), "no API key could be looked up")
	require.Equal(t, http.StatusServiceUnavailable, reach(t, without, apikey.Mint()), without.stderr.String())

	pg.Start()
	without.eventually("say that there is no key", func() bool {
		return strings.Contains(without.stdout.String(), "there is no API key. 'sluice keys create NAME'")
	})
	withFile.eventually("say that the database is back", func() bool {
		return strings.Contains(withFile.stdout.String(), "The database is back. API keys exist.")
	})
	require.NotContains(t, without.stdout.String()+withFile.stdout.String(), "sk-sluice-", "no key is made when nobody may be looking")
	key := newKey(t, database)
	for _, p := range []*process{without, withFile} {
		require.Equal(t, http.StatusOK, reach(t, p, key))
		p.signal(syscall.SIGTERM)
		require.Zero(t, p.wait())
		lines := strings.Split(strings.TrimSpace(p.stderr.String()), "\n")
		require.Contains(t, lines[len(lines)-1], `"msg":"stopped"`)
	}
}

// TestSchemaIsNotForgottenDuringAnOutage starts on a database that is down and turns
// out to lack its schema.
func TestSchemaIsNotForgottenDuringAnOutage(t *testing.T) {
	t.Parallel()
	pg := testkit.PostgresServer(t)
	database := "SLUICE_STORE_URL=" + pg.URL()
	pg.Stop()
	p := serving(t, t.TempDir(), database, "SLUICE_CONFIG="+withKey(t))
	pg.Start()
	p.eventually("miss the schema", func() bool { return strings.Contains(p.stderr.String(), "run 'sluice migrate'") })
	require.Equal(t, http.StatusOK, reach(t, p, configuredKey))
	require.NotContains(t, p.stdout.String(), "The database is back", "it is of no use yet")
	code, _, stderr := execute(t, command{env: []string{database}, args: []string{"migrate"}})
	require.Zero(t, code, stderr)
	p.eventually("find the schema", func() bool { return strings.Contains(p.stdout.String(), "The database is back") })
	require.Equal(t, http.StatusOK, reach(t, p, newKey(t, database)))
}

// TestADatabaseThatRefusesEndsTheStart has what does not pass by itself: another
// database than the one that is there, and one without its schema.
func TestADatabaseThatRefusesEndsTheStart(t *testing.T) {
	t.Parallel()
	empty := testkit.Postgres(t)
	nats := testkit.StartNATS(t)
	for address, want := range map[string]string{
		strings.Replace(empty, "sluice_test_", "sluice_none_", 1): "the database refuses",
		empty: "run 'sluice migrate'",
	} {
		for _, role := range []string{"serve", "ingress"} {
			env := []string{anyPort, "SLUICE_STORE_URL=" + address, "SLUICE_QUEUE_URL=" + nats.URL(), "SLUICE_PROVIDERS_UP_TYPE=sim"}
			code, stdout, stderr := execute(t, command{env: env, args: []string{role}})
			require.Equal(t, 1, code, "%s: %s", role, stderr)
			require.Empty(t, stdout)
			require.Contains(t, stderr, want)
		}
	}
}

func TestAFileOfItsOwnBesideASharedQueueIsWarnedOf(t *testing.T) {
	t.Parallel()
	nats := testkit.StartNATS(t)
	p := start(t, command{env: []string{anyPort, "SLUICE_QUEUE_URL=" + nats.URL(), "SLUICE_PROVIDERS_UP_TYPE=sim"}, args: []string{"ingress"}})
	p.address()
	require.Contains(t, p.stderr.String(), "store.url is empty")
	require.NotContains(t, serving(t, t.TempDir()).stderr.String(), "store.url is empty", "alone it is as it should be")
}
