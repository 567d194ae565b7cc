package token

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/store"
)

const (
	issuerURL = "https://login.example.com/"
	keysURL   = "https://login.example.com/keys"
	audience  = "sluice"
)

// The keys of tests are made once: it takes long.
var (
	rsaKey = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	ec256  = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	ec384  = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
	edKey  = sync.OnceValue(func() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)) })
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// published is the issuer's side: keys behind an address that can be slow or away.
type published struct {
	mu    sync.Mutex
	keys  []jose.JSONWebKey
	raw   string // if set, this instead
	err   error
	gate  chan struct{} // if set, readings wait for it
	reads int
}

func (p *published) RoundTrip(r *http.Request) (*http.Response, error) {
	p.mu.Lock()
	p.reads++
	gate := p.gate
	p.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return nil, p.err
	}
	body := []byte(p.raw)
	if p.raw == "" {
		body = must(json.Marshal(jose.JSONWebKeySet{Keys: p.keys}))
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
}

func (p *published) publish(keys ...jose.JSONWebKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = keys
}

func (p *published) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func (p *published) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reads
}

func jwk(id string, key crypto.PublicKey) jose.JSONWebKey {
	return jose.JSONWebKey{Key: key, KeyID: id}
}

type rig struct {
	*Verifier
	keys   *published
	reg    *prometheus.Registry
	logs   *bytes.Buffer
	issuer Issuer
}

// now is whom the verifier trusts by now.
func (r *rig) now() Trusted { return Trusted{verifier: r.Verifier, set: r.set.Load()} }

func (r *rig) Verify(ctx context.Context, raw string) (store.Key, error) {
	return r.now().Verify(ctx, raw)
}
func (r *rig) Takes() bool            { return r.now().Takes() }
func (r *rig) Vouches(id string) bool { return r.now().Vouches(id) }

func testIssuer() Issuer {
	return Issuer{
		Issuer: issuerURL, Audiences: []string{audience, "other"}, KeysURL: keysURL,
		Algorithms: []string{"RS256", "PS256", "ES256", "EdDSA"}, Refresh: 15 * time.Minute, Leeway: 30 * time.Second,
		SubjectClaim: "sub", TenantClaim: "tenant", ModelsClaim: "models", LimitsClaim: "limits",
	}
}

// setup makes a verifier of an issuer that has published a key of each kind.
func setup(t testing.TB, change ...func(*Issuer)) *rig {
	t.Helper()
	r := &rig{keys: &published{}, reg: prometheus.NewRegistry(), issuer: testIssuer(), logs: &bytes.Buffer{}}
	r.keys.publish(jwk("rsa", rsaKey().Public()), jwk("ec", ec256().Public()), jwk("ed", edKey().Public()))
	for _, c := range change {
		c(&r.issuer)
	}
	r.Verifier = NewVerifier(Options{Metrics: NewMetrics(r.reg), Logger: slog.New(slog.NewTextHandler(r.logs, nil)), Transport: r.keys})
	r.Use([]Issuer{r.issuer})
	return r
}

// run keeps the keys current until the function that it returns is called.
func (r *rig) run(t testing.TB) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// counted returns what a metric has for a label.
func (r *rig) counted(t testing.TB, metric, label string) float64 {
	t.Helper()
	families, err := r.reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == metric && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func (r *rig) refused(t testing.TB, why reason) float64 {
	t.Helper()
	return r.counted(t, "sluice_token_refused_total", string(why))
}

type claims = map[string]any

// valid are claims that nothing is wrong with, but for the changes.
func valid(changes ...claims) claims {
	now := time.Now().Unix()
	c := claims{"iss": issuerURL, "aud": audience, "sub": "reader", "tenant": "blue", "iat": now, "nbf": now, "exp": now + 3600}
	for _, change := range changes {
		maps.Copy(c, change)
	}
	return c
}

func without(names ...string) claims {
	c := valid()
	for _, name := range names {
		delete(c, name)
	}
	return c
}

// sign makes a token with go-jose, as an issuer would.
func sign(t testing.TB, alg string, key any, header, c claims) string {
	t.Helper()
	return signText(t, alg, key, header, string(must(json.Marshal(c))))
}

func signText(t testing.TB, alg string, key any, header claims, payload string) string {
	t.Helper()
	o := &jose.SignerOptions{}
	for name, value := range header {
		o.WithHeader(jose.HeaderKey(name), value)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(alg), Key: key}, o)
	require.NoError(t, err)
	signed, err := signer.Sign([]byte(payload))
	require.NoError(t, err)
	return must(signed.CompactSerialize())
}

// ed signs with the key ed.
func ed(t testing.TB, c claims) string {
	t.Helper()
	return sign(t, "EdDSA", edKey(), claims{"kid": "ed"}, c)
}

// forge signs a header that go-jose would not write, with the key ed.
func forge(header, payload string) string {
	enc := base64.RawURLEncoding
	text := enc.EncodeToString([]byte(header)) + "." + enc.EncodeToString([]byte(payload))
	return text + "." + enc.EncodeToString(ed25519.Sign(edKey(), []byte(text)))
}

func codeOf(err error) inference.ErrorCode {
	if err == nil {
		return ""
	}
	return inference.AsError(err).Code
}

func reasonOf(t testing.TB, err error) reason {
	t.Helper()
	require.Error(t, err)
	r, ok := errors.AsType[*refusal](err)
	require.True(t, ok, "%v", err)
	return r.reason
}
