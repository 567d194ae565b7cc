package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What an adapter would refuse is found before there is one, with its place.
func TestFaultsOfWhatIsSentToUpstreams(t *testing.T) {
	t.Parallel()
	of := func(kind, settings string) string {
		return "providers:\n  up:\n    type: " + kind + "\n    models: [m]\n    " + settings + "\n"
	}
	openAI := func(settings string) string { return of("openai", "base_url: https://a\n    "+settings) }
	custom := func(settings string) string {
		return of("custom", "base_url: https://a\n    custom: {"+settings+"}")
	}
	inHeader := ": must hold no control character"
	for _, c := range []struct{ name, text, want string }{
		{"credentials", of("openai", "base_url: http://user:hunter2@host"), "sluice.yaml:5:15: providers.up.base_url: must not hold credentials"},
		{"credentials of another type", of("gemini", "base_url: https://hunter2@host"), "sluice.yaml:5:15: providers.up.base_url: must not hold credentials"},
		{"no URL", of("anthropic", "base_url: 'https://hunter2\x7f'"), "sluice.yaml:5:15: providers.up.base_url: must be an http or https address"},
		{"header's name", openAI("headers: {'X Org': hunter2}"), "sluice.yaml:6:24: providers.up.headers.?: must have the name of a header"},
		{"header's name in brackets", openAI("headers: {'X[0]': hunter2}"), "sluice.yaml:6:23: providers.up.headers.X[0]: must have the name of a header"},
		{"no header's name", openAI("headers: {'': hunter2}"), "sluice.yaml:6:19: providers.up.headers.: must have the name of a header"},
		{"header's value", openAI(`headers: {X-Org: "hunter2\n"}`), "sluice.yaml:6:22: providers.up.headers.X-Org" + inHeader},
		{"key", openAI(`api_key: "hunter2\n"`), "sluice.yaml:6:14: providers.up.api_key" + inHeader},
		{"key of Anthropic", of("anthropic", `api_key: "hunter2\x00"`), "sluice.yaml:5:14: providers.up.api_key" + inHeader},
		{"one of the keys", of("gemini", "api_keys: [{key: k}, {key: hunter2é}]"), "sluice.yaml:5:32: providers.up.api_keys[1].key" + inHeader},
		{"key's header", custom("key_header: X Key"), "sluice.yaml:6:26: providers.up.custom.key_header: must be the name of a header"},
		{"key's prefix", custom(`key_prefix: "Bearer\t"`), "sluice.yaml:6:26: providers.up.custom.key_prefix" + inHeader},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := problems(t, c.text)
			require.Len(t, got, 1, "%v", got)
			require.Contains(t, got[0], c.want)
			require.NotContains(t, got[0], "hunter2")
		})
	}
	got := problems(t, openAI("api_key: ${KEY}"), "KEY=hunter2\r")
	require.Len(t, got, 1)
	require.Contains(t, got[0], "sluice.yaml:6:14: providers.up.api_key"+inHeader)
	require.NotContains(t, got[0], "hunter2")
	for _, text := range []string{
		openAI("headers: {OpenAI-Organization: org one}"), custom("key_header: '', key_prefix: ''"), custom("key_header: x_key"), of("gemini", "base_url: https://a/v1?x=y"),
	} {
		_, err := read(text)
		require.NoError(t, err, text)
	}
}
