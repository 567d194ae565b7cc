package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// An operator sees what is kept and has it forgotten, and the next answer is a new one.
func TestTheCacheIsSeenToByAnOperator(t *testing.T) {
	t.Parallel()
	path := configFile(t, minimal+"admin: {address: '"+freeAddress(t)+"', token: operators-only-0123}\ncache: {rules: [{name: all, coalesce: true}]}\n")
	s := serveHere(t, path, "curl ")
	ask := func() string {
		body := strings.NewReader(`{"model":"sim","messages":[{"role":"user","content":"hi"}]}`)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.base+"/v1/chat/completions", body)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+s.key)
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, http.StatusOK, resp.StatusCode)
		return resp.Header.Get("X-Sluice-Cache")
	}
	require.Equal(t, "miss", ask())
	require.Equal(t, "hit", ask())
	require.Eventually(t, func() bool {
		code, out, _ := sluice(t, "cache", "show", "--config", path)
		return code == 0 && strings.Contains(out, "1 hit, 1 miss, 0 stale answers.") && strings.Contains(out, "database  1 ")
	}, soon, soon/1000)
	code, out, errs := sluice(t, "cache", "purge", "--model", "other", "--config", path)
	require.Zero(t, code, errs)
	require.Equal(t, "0 answers are forgotten.\n", out)
	require.Equal(t, "hit", ask())
	code, out, errs = sluice(t, "cache", "purge", "--model", "sim", "--config", path)
	require.Zero(t, code, errs)
	require.Equal(t, "1 answer is forgotten.\n", out)
	require.Equal(t, "miss", ask())
	require.Zero(t, s.stop(), s.errs.String())
}
