package integration

import (
	"crypto/ed25519"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/openai/openai-go/v3"
	"github.com/stretchr/testify/require"

	"sluice/internal/token"
)

// login is a scripted issuer of tokens: it publishes keys and signs with one of them.
type login struct {
	t      *testing.T
	server *httptest.Server
	s      *stack

	mu        sync.Mutex
	published []jose.JSONWebKey
	signer    jose.JSONWebKey
	away      bool
	reads     atomic.Int64
}

func newLogin(t *testing.T) *login {
	t.Helper()
	l := &login{t: t}
	l.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		l.reads.Add(1)
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.away {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: l.published})
	}))
	t.Cleanup(l.server.Close)
	return l
}

// key makes a new key of this id.
func (l *login) key(id string) jose.JSONWebKey {
	l.t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	require.NoError(l.t, err)
	return jose.JSONWebKey{KeyID: id, Key: private}
}

// use publishes the keys and signs with the first from now on.
func (l *login) use(keys ...jose.JSONWebKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.signer, l.published = keys[0], nil
	for _, k := range keys {
		l.published = append(l.published, k.Public())
	}
}

// issuer is how Sluice is configured for it.
func (l *login) issuer(refresh time.Duration) token.Issuer {
	return token.Issuer{
		Issuer: l.server.URL, Audiences: []string{"sluice"}, KeysURL: l.server.URL + "/keys", Algorithms: []string{"EdDSA"}, Refresh: refresh,
		Leeway: time.Minute, SubjectClaim: "sub", TenantClaim: "org.id", ModelsClaim: "models",
	}
}

// token signs one for the subject, with a key or with the one in use.
func (l *login) token(subject string, with ...jose.JSONWebKey) string {
	l.mu.Lock()
	key := l.signer
	l.mu.Unlock()
	if len(with) > 0 {
		key = with[0]
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, nil)
	if err != nil {
		panic(err)
	}
	payload, _ := json.Marshal(map[string]any{
		"iss": l.server.URL, "aud": []string{"sluice"}, "sub": subject, "org": map[string]any{"id": "green"}, "models": "m glob-*", "exp": time.Now().Add(time.Hour).Unix(),
	})
	signed, err := signer.Sign(payload)
	if err != nil {
		panic(err)
	}
	raw, err := signed.CompactSerialize()
	if err != nil {
		panic(err)
	}
	l.s.logs.forbid(raw)
	return raw
}

func TestTokensCallAsKeysDo(t *testing.T) {
	t.Parallel()
	l := newLogin(t)
	l.use(l.key("a"))
	l.s = start(t, func(o *options) { o.tokens = []token.Issuer{l.issuer(time.Hour)} })
	s := l.s
	raw := l.token("reader")
	require.Equal(t, http.StatusOK, s.status(0, raw, "m"))
	require.Equal(t, http.StatusForbidden, s.status(0, raw, "org/deep/m"), "the token bounds the models")
	require.Equal(t, http.StatusOK, s.status(0, s.secret, "m"), "keys go on")
	rows := s.rows(2)
	require.Equal(t, "green", rows[0].Tenant)
	require.Regexp(t, `^jwt:127\.0\.0\.1-[0-9a-f]{12}:reader$`, rows[0].KeyID)

	// What a caller keeps here is its tenant's, whoever it identifies as.
	other := l.key("a") // the same id, and nobody published it
	require.Equal(t, http.StatusUnauthorized, s.status(0, l.token("reader", other), "m"))
	a := s.do(0, http.MethodGet, "/v1/models", "", "Authorization", "Bearer "+raw)
	require.Contains(t, a.body, `"id":"m"`)
	require.NotContains(t, a.body, "org/deep/m")
	metrics := s.do(0, http.MethodGet, "/metrics", "").body
	require.Contains(t, metrics, `sluice_token_refused_total{reason="signature"} 1`)
	require.Contains(t, metrics, `sluice_jwks_refresh_total{result="ok"} 1`)
}

// TestKeysRotateUnderLoad has an issuer change its key, with no warning and with, while
// callers go on with whatever token is the latest. None of them is refused.
func TestKeysRotateUnderLoad(t *testing.T) {
	t.Parallel()
	l := newLogin(t)
	first, second, third := l.key("first"), l.key("second"), l.key("third")
	l.use(first)
	l.s = start(t, func(o *options) { o.tokens = []token.Issuer{l.issuer(time.Second)} })
	s := l.s

	stop := make(chan struct{})
	var callers sync.WaitGroup
	var good, bad atomic.Int64
	var wrong atomic.Value
	for range 4 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				raw := l.token("load")
				a, err := s.try(t.Context(), 0, http.MethodPost, chatPath, plainBody, "Authorization", "Bearer "+raw)
				if err != nil || a.status != http.StatusOK {
					wrong.Store(a.body)
					bad.Add(1)
					continue
				}
				good.Add(1)
			}
		})
	}
	more := func(why string) {
		before := good.Load()
		s.eventually(func() bool { return good.Load() > before+50 }, "calls go on %s", why)
	}
	more("with the first key")
	l.use(second, first)
	more("with a key that nobody was told of")
	old := l.token("old", first)
	require.Equal(t, http.StatusOK, s.status(0, old, "m"), "the old key is still published")
	l.use(second)
	s.eventually(func() bool { return s.status(0, old, "m") == http.StatusUnauthorized }, "the old key is withdrawn")
	more("when the old key is gone")

	l.use(second, third) // as most issuers do: published first, used later
	reads := l.reads.Load()
	s.eventually(func() bool { return l.reads.Load() > reads+1 }, "the next key is read")
	l.use(third, second)
	more("with a key that was announced")

	l.mu.Lock()
	l.away = true
	l.mu.Unlock()
	reads = l.reads.Load()
	s.eventually(func() bool { return l.reads.Load() > reads }, "the issuer is asked in vain")
	more("while the issuer is away")
	close(stop)
	callers.Wait()
	require.Zero(t, bad.Load(), "%v", wrong.Load())
}

// TestABatchOfAToken is validated after the token that made it is gone, by what it said.
func TestABatchOfAToken(t *testing.T) {
	t.Parallel()
	l := newLogin(t)
	l.use(l.key("a"))
	l.s = start(t, func(o *options) { o.tokens = []token.Issuer{l.issuer(time.Hour)} })
	u := l.s.batchUser(l.token("reader"))
	made := u.create(openai.BatchNewParamsEndpointV1ChatCompletions, chatLine("a", "m", canary, ""), chatLine("b", "glob-1", canary, ""))
	b := u.awaitStatus(made.ID, openai.BatchStatusCompleted)
	require.EqualValues(t, 2, b.RequestCounts.Completed)
	for _, row := range l.s.rows(2) {
		require.Equal(t, "green", row.Tenant)
	}
	made = u.create(openai.BatchNewParamsEndpointV1ChatCompletions, chatLine("a", "org/deep/m", canary, ""))
	u.awaitStatus(made.ID, openai.BatchStatusFailed)
	l.s.rows(2)
}
