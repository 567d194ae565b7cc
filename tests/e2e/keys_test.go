package e2e_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// revocationBound is within what every ingress refuses a revoked key.
const revocationBound = 3 * time.Second

// keys runs a subcommand of sluice keys on the cluster's database.
func (c *cluster) keys(args ...string) (code int, stdout, stderr string) {
	c.t.Helper()
	return execute(c.t, command{args: append(append([]string{"keys"}, args...), "--config", c.file("ingress.yaml"))})
}

func TestKeys(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	a, b := c.ingress(), c.ingress()
	c.worker(a, 1)
	ask := func(in *ingress, key, model string) int {
		c := in.as(key)
		_, err := c.api.Chat.Completions.New(t.Context(), params(model, "hi"))
		if err == nil {
			return http.StatusOK
		}
		return statusOf(err)
	}

	code, stdout, stderr := c.keys("create", "ci", "--tenant", "research", "--models", "glob-a*,"+clusterModel)
	require.Zero(t, code, stderr)
	key := strings.TrimSpace(stdout)
	require.Regexp(t, `^sk-sluice-\S+$`, key, "standard output holds the key alone, to be piped")
	require.Contains(t, stderr, "ci")
	require.NotContains(t, stderr, key)
	for _, in := range []*ingress{a, b} {
		require.Equal(t, http.StatusOK, ask(in, key, clusterModel))
		require.Equal(t, http.StatusOK, ask(in, key, "glob-abc"), "a glob allows it")
		require.Equal(t, http.StatusForbidden, ask(in, key, "glob-b"), "no glob allows it")
	}
	code, _, stderr = c.keys("create", "ci")
	require.Equal(t, 1, code, "a name is taken once")
	require.Contains(t, stderr, "name already taken")
	require.Equal(t, 1, strings.Count(stderr, "create key"), "said once: %s", stderr)

	code, short, stderr := c.keys("create", "short", "--expires", "2s")
	require.Zero(t, code, stderr)
	require.Equal(t, http.StatusOK, ask(a, short, clusterModel))
	require.Eventually(t, func() bool { return ask(a, short, clusterModel) == http.StatusUnauthorized }, patience, pollEvery, "the key does not expire")

	code, list, stderr := c.keys("list")
	require.Zero(t, code, stderr)
	require.Contains(t, list, "research")
	require.Contains(t, list, "glob-a*,"+clusterModel)
	require.Regexp(t, `(?m)^\S+ +ci +.* active `, list)
	require.Regexp(t, `(?m)^\S+ +short +.* expired `, list)
	require.NotContains(t, list, key)

	code, stdout, stderr = c.keys("revoke", "ci")
	revoked := time.Now()
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "is revoked")
	for _, in := range []*ingress{a, b} {
		require.Eventually(t, func() bool { return ask(in, key, clusterModel) == http.StatusUnauthorized }, patience, pollEvery)
		require.Less(t, time.Since(revoked), revocationBound)
	}
	require.Equal(t, http.StatusOK, ask(a, clusterKey, clusterModel), "other keys are none the worse")
	code, list, _ = c.keys("list")
	require.Zero(t, code)
	require.Regexp(t, `(?m)^\S+ +ci +.* revoked `, list)
	code, _, stderr = c.keys("revoke", "nobody")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, `"nobody"`)
}
