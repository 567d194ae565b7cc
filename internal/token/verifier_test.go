package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/store"
)

func TestTokensAreTaken(t *testing.T) {
	t.Parallel()
	r := setup(t)
	for name, raw := range map[string]string{
		"RSA":           sign(t, "RS256", rsaKey(), claims{"kid": "rsa"}, valid()),
		"RSA-PSS":       sign(t, "PS256", rsaKey(), claims{"kid": "rsa"}, valid()),
		"ECDSA":         sign(t, "ES256", ec256(), claims{"kid": "ec"}, valid()),
		"Ed25519":       sign(t, "EdDSA", edKey(), claims{"kid": "ed", "typ": "JWT"}, valid()),
		"access token":  sign(t, "EdDSA", edKey(), claims{"kid": "ed", "typ": "application/at+JWT"}, valid()),
		"no key id":     sign(t, "ES256", ec256(), nil, valid()),
		"audiences":     ed(t, valid(claims{"aud": []string{"x", "other"}})),
		"no iat or nbf": ed(t, without("iat", "nbf")),
		"a fraction":    ed(t, valid(claims{"exp": float64(time.Now().Unix()) + 60.5})),
		"just ended":    ed(t, valid(claims{"exp": time.Now().Add(-20 * time.Second).Unix()})),
		"a fast clock":  ed(t, valid(claims{"nbf": time.Now().Add(20 * time.Second).Unix()})),
		"own words":     ed(t, valid(claims{"groups": []any{"a", claims{"b": nil}}})),
		"its own keys":  sign(t, "EdDSA", edKey(), claims{"kid": "ed", "jku": "https://evil.example/keys", "x5u": "https://evil.example/x"}, valid()),
	} {
		caller, err := r.Verify(t.Context(), raw)
		require.NoError(t, err, name)
		require.Equal(t, "reader", caller.Name, name)
		require.Equal(t, "blue", caller.Tenant, name)
	}
	require.Equal(t, 1, r.keys.count(), "one reading of the keys, and none from addresses in tokens")
}

// What is wrong with each of these is all that is wrong with it.
func TestTokensAreRefused(t *testing.T) {
	t.Parallel()
	r := setup(t, func(i *Issuer) { i.Algorithms = append(i.Algorithms, "ES384") })
	now := time.Now().Unix()
	good := ed(t, valid())
	parts := strings.Split(good, ".")
	payload := string(must(json.Marshal(valid())))
	strange := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	for _, c := range []struct {
		name, raw string
		want      reason
	}{
		{"expired", ed(t, valid(claims{"exp": now - 31})), reasonExpired},
		{"never ends", ed(t, without("exp")), reasonClaims},
		{"ends some time", ed(t, valid(claims{"exp": "tomorrow"})), reasonClaims},
		{"ends at a numeral", ed(t, valid(claims{"exp": "4102444800"})), reasonClaims},
		{"ends beyond time", forge(`{"alg":"EdDSA","kid":"ed"}`, strings.Replace(payload, `"exp":`, `"exp":1e300,"was":`, 1)), reasonClaims},
		{"ended before time", ed(t, valid(claims{"exp": -5})), reasonClaims},
		{"not yet", ed(t, valid(claims{"nbf": now + 60})), reasonNotYet},
		{"not yet a time", ed(t, valid(claims{"nbf": nil})), reasonClaims},
		{"made tomorrow", ed(t, valid(claims{"iat": now + 86400})), reasonNotYet},
		{"audience", ed(t, valid(claims{"aud": "sluic"})), reasonAudience},
		{"audiences", ed(t, valid(claims{"aud": []string{"a", "b"}})), reasonAudience},
		{"no audience", ed(t, without("aud")), reasonAudience},
		{"empty audiences", ed(t, valid(claims{"aud": []string{}})), reasonAudience},
		{"audience of an object", ed(t, valid(claims{"aud": claims{audience: true}})), reasonClaims},
		{"audience among others", ed(t, valid(claims{"aud": []any{audience, 1}})), reasonClaims},
		{"issuer", ed(t, valid(claims{"iss": "https://login.example.com"})), reasonIssuer},
		{"issuers", ed(t, valid(claims{"iss": []string{issuerURL}})), reasonIssuer},
		{"no issuer", ed(t, without("iss")), reasonIssuer},
		{"key of nobody", sign(t, "ES256", strange, claims{"kid": "ec"}, valid()), reasonSignature},
		{"key of nobody, unnamed", sign(t, "ES256", strange, nil, valid()), reasonSignature},
		{"another's key id", sign(t, "RS256", rsaKey(), claims{"kid": "ec"}, valid()), reasonKey},
		{"another curve", sign(t, "ES384", ec384(), claims{"kid": "ec"}, valid()), reasonKey},
		{"key id of a path", sign(t, "EdDSA", edKey(), claims{"kid": "../../../dev/null"}, valid()), reasonKey},
		{"key id of an address", sign(t, "EdDSA", edKey(), claims{"kid": "https://evil.example/keys#ed"}, valid()), reasonKey},
		{"key in the header", sign(t, "ES256", strange, claims{"kid": "ec", "jwk": jwk("ec", strange.Public())}, valid()), reasonSignature},
		{"signature stripped", parts[0] + "." + parts[1] + ".", reasonSignature},
		{"signature of another", parts[0] + "." + strings.Split(ed(t, valid(claims{"sub": "another"})), ".")[1] + "." + parts[2], reasonSignature},
		{"algorithm not taken", sign(t, "RS512", rsaKey(), claims{"kid": "rsa"}, valid()), reasonAlgorithm},
		{"algorithm of a number", forge(`{"alg":1}`, payload), reasonAlgorithm},
		{"no algorithm", forge(`{"kid":"ed"}`, payload), reasonAlgorithm},
		{"extension", sign(t, "EdDSA", edKey(), claims{"kid": "ed", "crit": []string{"b64"}, "b64": true}, valid()), reasonMalformed},
		{"logout token", sign(t, "EdDSA", edKey(), claims{"kid": "ed", "typ": "logout+jwt"}, valid()), reasonMalformed},
		{"key id of a number", forge(`{"alg":"EdDSA","kid":5}`, payload), reasonMalformed},
		{"a claim twice", forge(`{"alg":"EdDSA","kid":"ed"}`, strings.Replace(payload, `{`, `{"sub":"root",`, 1)), reasonMalformed},
		{"a claim twice, escaped", forge(`{"alg":"EdDSA","kid":"ed"}`, strings.Replace(payload, `{`, `{"s\u0075b":"root",`, 1)), reasonMalformed},
		{"an inner claim twice", forge(`{"alg":"EdDSA","kid":"ed"}`, strings.Replace(payload, `{`, `{"limits":{"queued":1,"queued":2},`, 1)), reasonMalformed},
		{"a header twice", forge(`{"alg":"none","alg":"EdDSA","kid":"ed"}`, payload), reasonMalformed},
		{"claims that are a list", forge(`{"alg":"EdDSA","kid":"ed"}`, `[1]`), reasonMalformed},
		{"claims that are nothing", forge(`{"alg":"EdDSA","kid":"ed"}`, `null`), reasonMalformed},
		{"more behind the claims", forge(`{"alg":"EdDSA","kid":"ed"}`, payload+"}"), reasonMalformed},
		{"not UTF-8", forge(`{"alg":"EdDSA","kid":"ed"}`, strings.Replace(payload, "reader", "a\xff", 1)), reasonMalformed},
		{"nested deeply", forge(`{"alg":"EdDSA","kid":"ed"}`, `{"a":`+strings.Repeat("[", 1000)+strings.Repeat("]", 1000)+`}`), reasonMalformed},
		{"too large", ed(t, valid(claims{"x": strings.Repeat("x", MaxBytes)})), reasonMalformed},
		{"too many claims", ed(t, valid(many(maxClaims))), reasonMalformed},
		{"four parts", good + ".x", reasonMalformed},
		{"padded", parts[0] + "=." + parts[1] + "." + parts[2], reasonMalformed},
		{"encrypted", "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.a.b.c.d", reasonMalformed},
	} {
		_, err := r.Verify(t.Context(), c.raw)
		require.Equal(t, c.want, reasonOf(t, err), c.name)
		require.Equal(t, inference.CodeInvalidToken, codeOf(err), c.name)
		message := inference.AsError(err).Message
		for _, secret := range append(strings.Split(c.raw, "."), "root", "evil", "sluic\"") {
			require.False(t, len(secret) > 1 && strings.Contains(message+err.Error(), secret), "%s: %s", c.name, message)
		}
	}
	_, err := r.Verify(t.Context(), good)
	require.NoError(t, err)
	require.Positive(t, r.refused(t, reasonSignature))
}

func many(n int) claims {
	c := claims{}
	for i := range n {
		c["c"+strings.Repeat("x", i)[:i%8]+string(rune('a'+i%26))+strings.Repeat("y", i/26)] = 1
	}
	return c
}

// Without a signature nothing is taken, however the word is written.
func TestNoneIsNoAlgorithm(t *testing.T) {
	t.Parallel()
	r := setup(t)
	payload := base64.RawURLEncoding.EncodeToString(must(json.Marshal(valid())))
	for _, alg := range []string{"none", "None", "NONE", "nOnE", " none", "none ", "", "null", "none\u0000", "n\u006fne"} {
		header := must(json.Marshal(claims{"alg": alg, "kid": "ed"}))
		for _, signature := range []string{"", "AA", strings.Split(ed(t, valid()), ".")[2]} {
			_, err := r.Verify(t.Context(), base64.RawURLEncoding.EncodeToString(header)+"."+payload+"."+signature)
			require.Equal(t, reasonAlgorithm, reasonOf(t, err), "%q", alg)
		}
	}
}

// A public key is no secret, and must not serve as one.
func TestPublicKeysAreNoSharedSecrets(t *testing.T) {
	t.Parallel()
	der := must(x509.MarshalPKIXPublicKey(rsaKey().Public()))
	for name, secret := range map[string][]byte{
		"PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "DER": der,
		"JWK": must(json.Marshal(jwk("rsa", rsaKey().Public()))), "modulus": rsaKey().N.Bytes(),
	} {
		for _, taken := range [][]string{{"RS256"}, {"RS256", "HS256"}} { // even one who configures it does not get it
			r := setup(t, func(i *Issuer) { i.Algorithms = taken })
			enc := base64.RawURLEncoding
			text := enc.EncodeToString([]byte(`{"alg":"HS256","kid":"rsa"}`)) + "." + enc.EncodeToString(must(json.Marshal(valid())))
			mac := hmac.New(sha256.New, secret)
			mac.Write([]byte(text))
			_, err := r.Verify(t.Context(), text+"."+enc.EncodeToString(mac.Sum(nil)))
			require.Equal(t, inference.CodeInvalidToken, codeOf(err), name)
		}
	}
}

// A set may hold keys that are not for this, and they verify nothing.
func TestKeysThatAreOfNoUse(t *testing.T) {
	t.Parallel()
	short := must(rsa.GenerateKey(rand.Reader, 1024))
	good := jwk("ed", edKey().Public())
	use := func(k jose.JSONWebKey, alg, use string) jose.JSONWebKey {
		k.Algorithm, k.Use = alg, use
		return k
	}
	secret := []byte("a shared secret of 32 bytes, so..")
	for name, c := range map[string]struct {
		key jose.JSONWebKey
		raw string
	}{
		"short RSA":       {jwk("k", short.Public()), sign(t, "RS256", short, claims{"kid": "k"}, valid())},
		"for encryption":  {use(jwk("k", rsaKey().Public()), "", "enc"), sign(t, "RS256", rsaKey(), claims{"kid": "k"}, valid())},
		"another's":       {use(jwk("k", rsaKey().Public()), "PS256", "sig"), sign(t, "RS256", rsaKey(), claims{"kid": "k"}, valid())},
		"private":         {jose.JSONWebKey{KeyID: "k", Key: ec256()}, sign(t, "ES256", ec256(), claims{"kid": "k"}, valid())},
		"a shared secret": {jose.JSONWebKey{KeyID: "k", Key: secret}, sign(t, "HS256", secret, claims{"kid": "k"}, valid())},
	} {
		r := setup(t, func(i *Issuer) { i.Algorithms = append(i.Algorithms, "HS256") })
		r.keys.publish(good, c.key)
		_, err := r.Verify(t.Context(), c.raw)
		require.Equal(t, reasonKey, reasonOf(t, err), name)
		_, err = r.Verify(t.Context(), ed(t, valid()))
		require.NoError(t, err, "%s spoils no other key", name)
	}
}

func TestKeySets(t *testing.T) {
	t.Parallel()
	key := string(must(json.Marshal(jwk("k", edKey().Public()))))
	ks, err := parseKeySet([]byte(`{"keys":[{"kty":"new"},{"kty":"OKP","crv":"X25519","x":"AA"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},17,` + key + `]}`))
	require.NoError(t, err, "what is not understood is passed over")
	require.Len(t, ks.keys, 1)
	ops := strings.Replace(key, "{", `{"key_ops":["encrypt"],`, 1)
	for name, text := range map[string]string{
		"empty": "", "not JSON": "<html>", "a list": "[]", "no keys": "{}", "no key": `{"keys":[]}`, "none of use": `{"keys":[{"kty":"oct","k":"AAAA"}]}`,
		"for another use": `{"keys":[` + ops + `]}`, "deep": `{"keys":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`,
		"too many": `{"keys":[` + strings.TrimSuffix(strings.Repeat(key+",", maxKeys+1), ",") + `]}`,
	} {
		_, err := parseKeySet([]byte(text))
		require.Error(t, err, name)
	}
}

func TestClaimsMakeTheCaller(t *testing.T) {
	t.Parallel()
	own := &limits.Limits{Concurrent: 9}
	r := setup(t, func(i *Issuer) {
		i.SubjectClaim, i.TenantClaim, i.Tenant, i.Limits = "act.email", "org.id", "fallback", own
	})
	exp := time.Now().Unix() + 60
	base := func(changes ...claims) claims {
		return valid(append([]claims{{"act": claims{"email": "reader@x"}, "exp": exp}}, changes...)...)
	}
	want := store.Key{ID: "jwt:" + shortName(issuerURL) + ":reader@x", Name: "reader@x", Tenant: "fallback", Limits: own, ExpiresAt: time.Unix(exp+30, 0)}
	for name, c := range map[string]struct {
		claims claims
		want   func(*store.Key)
	}{
		"plain":         {base(), func(*store.Key) {}},
		"tenant":        {base(claims{"org": claims{"id": "blue"}}), func(k *store.Key) { k.Tenant = "blue" }},
		"flat tenant":   {base(claims{"org.id": "red"}), func(k *store.Key) { k.Tenant = "red" }},
		"empty section": {base(claims{"org": claims{}}), func(*store.Key) {}},
		"models":        {base(claims{"models": []string{"m", "gpt-*"}}), func(k *store.Key) { k.Models = []string{"m", "gpt-*"} }},
		"models' text":  {base(claims{"models": " m  gpt-* "}), func(k *store.Key) { k.Models = []string{"m", "gpt-*"} }},
		"no limit":      {base(claims{"limits": claims{}}), func(*store.Key) {}},
		"limits that bound nothing": {
			base(claims{"limits": claims{"on_limit": "queue"}}),
			func(k *store.Key) { k.Limits = &limits.Limits{Concurrent: 9, OnLimit: limits.Queue} },
		},
		"limits": {
			base(claims{"limits": claims{"requests_per_minute": 7, "budget": claims{"day": 1.5}, "models": []claims{{"models": []string{"m"}, "queued": 1}}}}),
			func(k *store.Key) {
				k.Limits = &limits.Limits{
					RequestsPerMinute: 7, Budget: limits.Budget{Day: must(inference.ParseCost("1.5"))},
					Models: []limits.ModelLimits{{Models: []string{"m"}, Queued: 1}},
				}
			},
		},
	} {
		caller, err := r.Verify(t.Context(), ed(t, c.claims))
		require.NoError(t, err, name)
		k := want
		c.want(&k)
		require.Equal(t, k, caller, name)
	}
}

// A claim that is there and cannot be read is never taken for one that is not there.
func TestClaimsOfTheWrongShape(t *testing.T) {
	t.Parallel()
	r := setup(t, func(i *Issuer) { i.Tenant, i.LimitsClaim = "fallback", "quota.limits" })
	limit := func(v any) claims { return claims{"quota": claims{"limits": v}} }
	for name, change := range map[string]claims{
		"no subject": {"sub": nil}, "empty subject": {"sub": ""}, "subject of a number": {"sub": 17}, "long subject": {"sub": strings.Repeat("x", 256)},
		"subject of two lines": {"sub": "a\nb"}, "tenant of nothing": {"tenant": nil}, "empty tenant": {"tenant": ""}, "tenants": {"tenant": []string{"a"}},
		"long tenant": {"tenant": strings.Repeat("x", 513)}, "tenant of two lines": {"tenant": "a\x00b"}, "padded tenant": {"tenant": " blue"},
		"models of nothing": {"models": nil}, "no models": {"models": []string{}}, "empty models": {"models": " "}, "models of a number": {"models": 1},
		"a model of a number": {"models": []any{"m", 1}}, "an empty model": {"models": []string{"m", ""}}, "a broken glob": {"models": []string{"["}}, "models of an object": {"models": claims{"m": true}},
		"no limits": limit(nil), "limits of text": limit("none"), "limits of a list": limit([]any{}), "unknown limit": limit(claims{"requests": 1}),
		"limit of text": limit(claims{"queued": "1"}), "negative limit": limit(claims{"queued": -1}), "huge limit": limit(claims{"queued": 1e30}),
		"half a limit": limit(claims{"queued": 1.5}), "action": limit(claims{"on_limit": "pass"}), "budget": limit(claims{"budget": claims{"day": -1}}),
		"models of limits": limit(claims{"models": []claims{{"queued": 1}}}), "glob of limits": limit(claims{"models": []claims{{"models": []string{"["}, "queued": 1}}}),
		"limits inside a text": {"quota": "none"}, "limits inside nothing": {"quota": nil},
	} {
		_, err := r.Verify(t.Context(), ed(t, valid(change)))
		require.Equal(t, reasonClaims, reasonOf(t, err), name)
		require.Equal(t, inference.CodeInvalidToken, codeOf(err), name)
	}
	_, err := r.Verify(t.Context(), ed(t, valid(claims{"quota": claims{}})))
	require.NoError(t, err)
}

// Whoever makes the tokens reads which limit is at fault.
func TestALimitOfTheWrongShapeIsNamed(t *testing.T) {
	t.Parallel()
	r := setup(t)
	for want, own := range map[string]claims{
		"The token's claim limits models[0].models[0] has a control character.":                                                  {"models": []claims{{"models": []string{"a\nb"}, "queued": 1}}},
		`The token's claim limits cannot be used. There is no field "requests".`:                                                 {"requests": 1},
		`The token's claim limits cannot be used. "models[0].queued" must not be a JSON string.`:                                 {"models": []claims{{"models": []string{"m"}, "queued": "1"}}},
		`The token's claim limits cannot be used. "requests_per_minute" must not be null.`:                                       {"requests_per_minute": nil},
		`The token's claim limits cannot be used. "budget.day" is no amount of money, such as 12.50 with at most nine decimals.`: {"budget": claims{"day": "abc"}},
	} {
		_, err := r.Verify(t.Context(), ed(t, valid(claims{"limits": own})))
		require.Equal(t, want, inference.AsError(err).Message)
	}
}

// What the operator wrote for all callers is not held against a token.
func TestLimitsOfTheIssuerRefuseNoToken(t *testing.T) {
	t.Parallel()
	own := &limits.Limits{Models: []limits.ModelLimits{{Models: []string{"["}, Concurrent: 1}}}
	r := setup(t, func(i *Issuer) { i.Limits = own })
	caller, err := r.Verify(t.Context(), ed(t, valid()))
	require.NoError(t, err)
	require.Equal(t, own, caller.Limits)
}

func TestATokenWithoutATenant(t *testing.T) {
	t.Parallel()
	r := setup(t)
	_, err := r.Verify(t.Context(), ed(t, without("tenant")))
	require.Equal(t, inference.CodeTokenNotAllowed, codeOf(err), "it is in force, and says too little")
	require.Contains(t, inference.AsError(err).Message, "tenant")
}

// Callers of two issuers are never one, whatever they are called.
func TestCallersOfDifferentIssuers(t *testing.T) {
	t.Parallel()
	seen := make(map[string]string)
	for _, issuer := range []string{"https://a.example/x", "https://a.example/y", "https://a.example/x:y", "a", "b", "urn:a", strings.Repeat("x", 999)} {
		short := shortName(issuer)
		require.Empty(t, seen[short])
		require.Less(t, len(short), 200)
		seen[short] = issuer
	}
	require.True(t, strings.HasPrefix(shortName("https://a.example/x"), "a.example-"))
}

func TestWhatLooksLikeAToken(t *testing.T) {
	t.Parallel()
	require.True(t, LooksLike(ed(t, valid())))
	require.True(t, LooksLike("eyJ.e."))
	for _, text := range []string{"", "eyJ", "eyJ.a", "eyJ.a.b.c", "sk-sluice-1.2.3", "eyJa.b.c=", "eyJa.b.c d", "eyJa.b.c\n", "xeyJa.b.c", "eyJa.b.ç"} {
		require.False(t, LooksLike(text), text)
	}
}

func TestNamesOfClaims(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"sub", "org.id", "a.b.c", "cognito:groups", "https://example.com/tenant", "https://example.com/a..b"} {
		require.True(t, ValidClaim(name), name)
	}
	for _, name := range []string{"", ".", "a.", ".a", "a..b", "a b", "a\nb", strings.Repeat("a", 257)} {
		require.False(t, ValidClaim(name), name)
	}
}
