package config

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/cache"
	"sluice/internal/routing"
)

func TestCachePolicy(t *testing.T) {
	t.Parallel()
	loaded, err := read(twoSims + `
cache:
  memory_bytes: 1MiB
  database_bytes: 2MiB
  max_answer_bytes: 64KiB
  ttl: 2h
  by_request: false
  rules:
    - {name: own, when: {all: [{endpoints: [embeddings]}], not: [{tenants: [acme]}]}, ttl: 24h, stale_if_error: 1h, scope: key, coalesce: true}
    - {name: off, when: {any: [{models: ["gpt-*"]}]}, enabled: false}
    - {name: rest}
`)
	require.NoError(t, err)
	require.Equal(t, cache.Policy{
		MemoryBytes: 1 << 20, DatabaseBytes: 2 << 20, MaxAnswer: 64 << 10, TTL: 2 * time.Hour,
		Rules: []cache.Rule{
			{
				Name: "own", When: routing.When{All: []routing.Match{{Endpoints: []string{"embeddings"}}}, Not: []routing.Match{{Tenants: []string{"acme"}}}},
				Enabled: true, TTL: 24 * time.Hour, StaleIfError: time.Hour, PerKey: true, Coalesce: true,
			},
			{Name: "off", When: routing.When{Any: []routing.Match{{Models: []string{"gpt-*"}}}}, TTL: time.Hour},
			{Name: "rest", Enabled: true, TTL: time.Hour},
		},
	}, loaded.Config.Cache.Policy())
}

func TestCacheFaults(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, want string }{
		"nowhere":          {"{memory_bytes: 0B, database_bytes: 0B, rules: [{name: a}]}", "cache.rules: keep nothing"},
		"answer too large": {"{memory_bytes: 1MiB, database_bytes: 1MiB, max_answer_bytes: 2MiB}", "cache.max_answer_bytes: must not be more"},
		"no name":          {"{rules: [{ttl: 1h}]}", "cache.rules[0].name: must not be empty"},
		"odd name":         {"{rules: [{name: 'a b'}]}", "cache.rules[0].name: must begin with a letter"},
		"name twice":       {"{rules: [{name: a, when: {all: [{stream: true}]}}, {name: a}]}", "cache.rules[1].name: in the rule a: is the name of an earlier rule"},
		"glob":             {"{rules: [{name: a, when: {all: [{models: ['[']}]}}]}", "cache.rules[0].when.all[0].models[0]: in the rule a: must be a name or a glob"},
		"never reached":    {"{rules: [{name: a}, {name: b, when: {all: [{stream: true}]}}]}", "cache.rules[1]: in the rule b: must not stand behind"},
		"impossible":       {"{rules: [{name: a, when: {all: [{stream: true}], not: [{stream: true}]}}]}", "cache.rules[0].when: in the rule a: must not rule itself out"},
		"ttl":              {"{rules: [{name: a, ttl: 0s}]}", "cache.rules[0].ttl: "},
		"stale for none":   {"{rules: [{name: a, enabled: false, stale_if_error: 1h}]}", "cache.rules[0].stale_if_error: in the rule a: is of no use"},
		"coalesce none":    {"{rules: [{name: a, enabled: false, coalesce: true}]}", "cache.rules[0].coalesce: in the rule a: is of no use"},
		"does nothing":     {"{by_request: false, rules: [{name: a, enabled: false}]}", "cache.rules[0].enabled: in the rule a: takes requests out"},
		"scope":            {"{rules: [{name: a, scope: all}]}", "cache.rules[0].scope: must be one of tenant, key"},
	} {
		_, err := read(twoSims + "cache: " + c.text)
		require.ErrorContains(t, err, c.want, name)
	}
	for _, fine := range []string{"{memory_bytes: 0B, database_bytes: 0B}", "{rules: [{name: a, enabled: false}]}", "{by_request: false, rules: [{name: a, when: {all: [{stream: true}]}, enabled: false}, {name: b}]}"} {
		_, err := read(twoSims + "cache: " + fine)
		require.NoError(t, err, fine)
	}
}
