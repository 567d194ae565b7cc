package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/config"
	"sluice/internal/limits"
)

func TestLimitsOfTheConfiguration(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "sluice.yaml")
	require.NoError(t, os.WriteFile(file, []byte(`
auth:
  keys:
    - {name: own, key: 0123456789abcdef, limits: {budget: {day: 2.5}}}
    - {name: none, key: fedcba9876543210}
    - {name: nothing, key: 0123456789fedcba, limits: {}}
  tenants: [{name: t, limits: {queued: 3, on_limit: queue}}, {name: nothing}]
  jwt: [{issuer: "https://login.example.com", audiences: [a], jwks_url: "https://login.example.com/keys", limits: {}}]
rate_limit:
  on_error: fail_open
  default_output_tokens: 77
  key: {requests_per_minute: 5}
  tenant: {concurrent: 6}
  models: [{models: [m], tokens_per_minute: 8}]
`), 0o600))
	loaded, err := config.Load(config.Options{Path: file})
	require.NoError(t, err)
	l := limitSettings(loaded.Config, nil)
	require.True(t, l.FailOpen)
	require.EqualValues(t, 77, l.DefaultOutput)
	require.Equal(t, limits.Limits{RequestsPerMinute: 5, OnLimit: limits.Refuse}, l.Key)
	require.Equal(t, limits.Limits{Concurrent: 6, OnLimit: limits.Refuse}, l.Tenant)
	require.Equal(t, map[string]*limits.Limits{"t": {Queued: 3, OnLimit: limits.Queue}, "nothing": nil}, l.Tenants)
	require.Equal(t, []limits.ModelLimits{{Models: []string{"m"}, TokensPerMinute: 8}}, l.Models)
	keys := ingressSettings(loaded.Config).StaticKeys
	require.Equal(t, limits.Budget{Day: 2_500_000_000}, keys[0].Limits.Budget)
	require.Nil(t, keys[1].Limits)
	require.Nil(t, keys[2].Limits, "they bound nothing")
	require.Nil(t, tokenIssuers(loaded.Config)[0].Limits)
	require.Equal(t, l.Tenants, ingressSettings(loaded.Config).Limits.Tenants)
	loaded.Config.RateLimit.OnError = "fail_closed"
	require.False(t, limitSettings(loaded.Config, nil).FailOpen)
}
