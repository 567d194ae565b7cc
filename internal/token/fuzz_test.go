package token

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Claims come from an issuer that is trusted to say who somebody is, and not to be free of
// mistakes: whoever passes is somebody, within what the settings ask for.
func FuzzClaims(f *testing.F) {
	for _, c := range []claims{
		valid(), valid(claims{"models": "m"}), valid(claims{"models": []any{"m", 1}}), valid(claims{"limits": claims{"queued": 1}}),
		valid(claims{"limits": []any{nil}}), valid(claims{"exp": 1e300}), valid(claims{"tenant": claims{"a": "b"}}), valid(claims{"aud": nil}),
		{},
	} {
		f.Add(`{"alg":"EdDSA","kid":"ed"}`, string(must(json.Marshal(c))))
	}
	f.Add(`{"alg":"EdDSA","kid":"ed","crit":[]}`, `{"exp":1,"exp":2}`)
	f.Add(`[]`, `{"a":{"b":[{}]}}`)
	r := setup(f)
	f.Fuzz(func(t *testing.T, header, payload string) {
		caller, err := r.Verify(t.Context(), forge(header, payload))
		if err != nil {
			require.NotEmpty(t, codeOf(err))
			return
		}
		require.NoError(t, caller.Validate())
		require.True(t, caller.Active(time.Now()))
		require.True(t, IsCaller(caller.ID))
		if caller.Limits != nil {
			require.NoError(t, caller.Limits.Validate())
		}
	})
}

func FuzzKeySet(f *testing.F) {
	f.Add(must(json.Marshal(claims{"keys": []any{jwk("ed", edKey().Public()), jwk("rsa", rsaKey().Public()), jwk("ec", ec384().Public())}})))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQ","e":"AQAB"},{"kty":"EC","crv":"P-256"},null,5]}`))
	f.Add([]byte(`{"keys":{}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		ks, err := parseKeySet(text)
		if err != nil {
			return
		}
		require.NotEmpty(t, ks.keys)
		for _, alg := range testIssuer().Algorithms {
			keys, _ := ks.choose("", alg)
			require.LessOrEqual(t, len(keys), maxTries)
		}
	})
}
