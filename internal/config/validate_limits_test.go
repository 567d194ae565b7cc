package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFaultsOfLimits(t *testing.T) {
	t.Parallel()
	key := func(l string) string {
		return "auth: {keys: [{name: a, key: '0123456789abcdef', limits: {" + l + "}}]}"
	}
	tenants := func(list string) string { return "auth: {tenants: [" + list + "]}" }
	for _, c := range []struct{ name, text, want string }{
		{"waiting for nothing", key("on_limit: queue"), "auth.keys[0].limits.on_limit: does nothing without a limit beside it"},
		{"keys wait for nothing", "rate_limit: {key: {on_limit: queue}}", "rate_limit.key.on_limit: does nothing"},
		{"tenants wait for nothing", "rate_limit: {tenant: {on_limit: queue}}", "rate_limit.tenant.on_limit: does nothing"},
		{"a tenant waits for nothing", tenants("{name: a, limits: {on_limit: queue}}"), "auth.tenants[0].limits.on_limit: does nothing"},
		{"no models", "rate_limit: {models: [{concurrent: 1}]}", "rate_limit.models[0].models: is missing"},
		{"no models of a key", key("models: [{concurrent: 1}]"), "auth.keys[0].limits.models[0].models: is missing"},
		{"a glob", "rate_limit: {tenant: {models: [{models: [m, '[']}]}}", "rate_limit.tenant.models[0].models[1]: must be a model's name or a glob"},
		{"a model said before", "rate_limit: {models: [{models: ['gpt-*'], concurrent: 1}, {models: [gpt-4o], concurrent: 2}]}", "rate_limit.models[1].models[0]: never counts"},
		{"a tenant without a name", tenants("{limits: {concurrent: 1}}"), "auth.tenants[0].name: is missing"},
		{"a tenant of two lines", tenants(`{name: "a\nb", limits: {concurrent: 1}}`), "auth.tenants[0].name: must be UTF-8"},
		{"a long tenant", tenants("{name: " + strings.Repeat("t", 513) + "}"), "auth.tenants[0].name: must be UTF-8 of at most 512 bytes"},
		{"a tenant twice", tenants("{name: a}, {name: b}, {name: a}"), "auth.tenants[2].name: is the name of an earlier tenant"},
		{"a negative limit", key("concurrent: -1"), "auth.keys[0].limits.concurrent: must be from 0 to"},
		{"what happens", "rate_limit: {on_error: hope}", "rate_limit.on_error: must be one of fail_closed, fail_open"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := problems(t, c.text)
			require.Len(t, got, 1, "one fault is reported once")
			require.Contains(t, got[0], c.want)
		})
	}
}

func TestLimitsThatAreFine(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"rate_limit: {key: {concurrent: 1, on_limit: queue}}",
		"rate_limit: {key: {on_limit: queue, models: [{models: [m], concurrent: 1}]}}",
		"rate_limit: {models: [{models: [free]}, {models: ['*'], concurrent: 1}]}",
		"auth: {tenants: [{name: a, limits: {budget: {day: 1.5}, on_limit: queue}}, {name: A}]}",
	} {
		_, err := read(text)
		require.NoError(t, err, text)
	}
}
