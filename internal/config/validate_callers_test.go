package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFaultsOfTokensAndPages(t *testing.T) {
	t.Parallel()
	jwt := func(change string) string {
		settings := map[string]string{"issuer": "https://a", "audiences": "[x]", "jwks_url": "https://a/keys"}
		if name, value, ok := strings.Cut(change, ": "); ok {
			settings[name] = value
		}
		var b strings.Builder
		b.WriteString("auth:\n  jwt:\n    - leeway: 1s\n")
		for name, value := range settings {
			b.WriteString("      " + name + ": " + value + "\n")
		}
		return b.String()
	}
	cors := func(settings string) string { return "server: {cors: {" + settings + "}}" }
	origin := "server.cors.allowed_origins[0]: must be scheme://host"
	openOrigin := "server.cors.allowed_origins[0]: has a * right under a top level"
	originPort := "server.cors.allowed_origins[0]: must have a port from 1 to 65535"
	for _, c := range []struct{ name, text, want string }{
		{"no issuer", jwt("issuer: ''"), "auth.jwt[0].issuer: must be the issuer exactly"},
		{"padded issuer", jwt("issuer: ' a'"), "auth.jwt[0].issuer: must be the issuer exactly"},
		{"same issuer", jwt("") + "    - {issuer: 'https://a', audiences: [y], jwks_url: 'https://b'}\n", "auth.jwt[1].issuer: is an earlier issuer"},
		{"no audience", jwt("audiences: []"), "auth.jwt[0].audiences: must name at least one audience"},
		{"empty audience", jwt("audiences: [x, '']"), "auth.jwt[0].audiences[1]: must not be empty"},
		{"no keys", jwt("jwks_url: ''"), "auth.jwt[0].jwks_url: must be an https address"},
		{"keys over http", jwt("jwks_url: http://a/keys"), "auth.jwt[0].jwks_url: must be an https address"},
		{"no algorithm", jwt("algorithms: []"), "auth.jwt[0].algorithms: must name at least one algorithm"},
		{"shared secrets", jwt("algorithms: [HS256]"), "auth.jwt[0].algorithms[0]: must be one of RS256"},
		{"no algorithm at all", jwt("algorithms: [none]"), "auth.jwt[0].algorithms[0]: must be one of RS256"},
		{"no subject", jwt("subject_claim: ''"), "auth.jwt[0].subject_claim: must be the name of a claim"},
		{"no tenant claim", jwt("tenant_claim: a..b"), "auth.jwt[0].tenant_claim: must be the name of a claim"},
		{"models claim", jwt("models_claim: .x"), "auth.jwt[0].models_claim: must be the name of a claim"},
		{"limits claim", jwt("limits_claim: 'a b'"), "auth.jwt[0].limits_claim: must be the name of a claim"},
		{"tenant", jwt(`tenant: "a\nb"`), "auth.jwt[0].tenant: has a control character"},
		{"limits", jwt("limits: {models: [{queued: 1}]}"), "auth.jwt[0].limits.models[0].models: is missing"},
		{"limits of a glob", jwt("limits: {models: [{models: ['[gpt'], concurrent: 1}]}"), "auth.jwt[0].limits.models[0].models[0]: must be a model's name or a glob"},
		{"limits that never count", jwt("limits: {models: [{models: ['*'], queued: 1}, {models: [m], queued: 2}]}"), "auth.jwt[0].limits.models[1].models[0]: never counts"},
		{"limits to wait for", jwt("limits: {on_limit: queue}"), "auth.jwt[0].limits.on_limit: does nothing"},
		{"limits of a model of two lines", jwt(`limits: {models: [{models: ["a\nb"], queued: 1}]}`), "auth.jwt[0].limits: models[0].models[0] has a control character"},

		{"origin with a path", cors("allowed_origins: ['https://a/']"), origin},
		{"origin without a scheme", cors("allowed_origins: [a.example]"), origin},
		{"origin of nothing", cors("allowed_origins: ['null']"), origin},
		{"origin of two stars", cors("allowed_origins: ['https://*.*.example']"), origin},
		{"origin with an open end", cors("allowed_origins: ['https://example.*']"), origin},
		{"origin of a suffix", cors("allowed_origins: ['https://*example.com/x']"), origin},
		{"origin of any host", cors("allowed_origins: ['https://*']"), origin},
		{"origin with a user", cors("allowed_origins: ['https://u@a']"), origin},
		{"origin under a top level", cors("allowed_origins: ['https://*.com']"), openOrigin},
		{"origin of a part under a top level", cors("allowed_origins: ['https://pr-*.com:8443']"), openOrigin},
		{"origin of addresses", cors("allowed_origins: ['http://*.0.0.1']"), openOrigin},
		{"origin with a high port", cors("allowed_origins: ['http://localhost:65536']"), originPort},
		{"origin with a port of five digits", cors("allowed_origins: ['http://[::1]:99999']"), originPort},
		{"origin with no port", cors("allowed_origins: ['http://localhost:0']"), originPort},
		{"origin with a port of another spelling", cors("allowed_origins: ['http://localhost:080']"), originPort},
		{"origin twice", cors("allowed_origins: ['https://a', 'HTTPS://A']"), "server.cors.allowed_origins[1]: is an earlier origin"},
		{"anybody with cookies", cors("allowed_origins: ['*'], allow_credentials: true"), `server.cors.allowed_origins[0]: must not be "*" together`},
		{"cookies of nobody", cors("allow_credentials: true"), "server.cors.allow_credentials: is of no use"},
		{"header", cors("allowed_origins: ['*'], allowed_headers: ['a b']"), "server.cors.allowed_headers[0]: must be the name of a header"},
		{"exposed", cors("allowed_origins: ['*'], exposed_headers: ['']"), "server.cors.exposed_headers[0]: must be the name of a header"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := problems(t, c.text)
			require.Len(t, got, 1, "%v", got)
			require.Contains(t, got[0], c.want)
		})
	}
	for _, text := range []string{
		jwt("jwks_url: http://127.0.0.1:9000/keys"), jwt("issuer: urn:example"), jwt("tenant_claim: https://a.example/tenant"),
		cors("allowed_origins: ['*']"), cors("allowed_origins: ['https://*.a.example', 'http://localhost:*', 'https://pr-*.a.example:8443', 'http://[::1]:3000', 'tauri://localhost', 'http://*.localhost:65535', 'https://*.a1.x2:1'], allow_credentials: true"),
	} {
		_, err := read(text)
		require.NoError(t, err, text)
	}
}
