package ingress

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"

	"sluice/internal/apikey"
	"sluice/internal/inference"
	"sluice/internal/token"
	"sluice/store"
)

// loginPage is an issuer of tokens behind a transport: its keys, and those who ask for
// them.
type loginPage struct {
	mu    sync.Mutex
	err   error
	reads int
}

func signingKey() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, ed25519.SeedSize))
}

func (l *loginPage) RoundTrip(r *http.Request) (*http.Response, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	if l.err != nil {
		return nil, l.err
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{KeyID: "k", Key: signingKey().Public()}}})
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(set)), Request: r}, err
}

const loginURL = "https://login.example.com/"

// verifier takes tokens of the login page.
func (l *loginPage) verifier() *token.Verifier {
	return token.NewVerifier(token.Options{Metrics: token.NewMetrics(prometheus.NewRegistry()), Logger: discard(), Transport: l})
}

// trust has the ingress take the tokens of these issuers alone.
func (s *Ingress) trust(list ...token.Issuer) {
	next := *s.current()
	next.Tokens = list
	s.Apply(next)
}

func loginIssuer() token.Issuer {
	return token.Issuer{
		Issuer: loginURL, Audiences: []string{"sluice"}, KeysURL: loginURL + "keys", Algorithms: []string{"EdDSA"}, Refresh: time.Hour,
		SubjectClaim: "sub", TenantClaim: "tenant", ModelsClaim: "models", LimitsClaim: "limits",
	}
}

// jwt signs claims that are in order but for the changes.
func jwt(changes ...map[string]any) string {
	now := time.Now().Unix()
	claims := map[string]any{"iss": loginURL, "aud": "sluice", "sub": "reader", "tenant": "team", "exp": now + 600}
	for _, change := range changes {
		maps.Copy(claims, change)
	}
	payload, _ := json.Marshal(claims) //nolint:errchkjson // plain values
	text := encode(`{"alg":"EdDSA","kid":"k","typ":"JWT"}`) + "." + encode(string(payload))
	return text + "." + encode(string(ed25519.Sign(signingKey(), []byte(text))))
}

func encode(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// door is the HTTP side of an ingress that has no queue: enough to ask who is calling.
func door(t testing.TB, change ...func(*Settings)) (*Ingress, *loginPage) {
	t.Helper()
	reg := prometheus.NewRegistry()
	settings := Settings{
		StaticKeys: []store.Key{{ID: "static", Tenant: "team", Hash: apikey.Hash("a-static-secret-of-the-file")}},
		Providers:  map[string]ProviderInfo{"acme": {Models: []string{"m"}}},
	}
	for _, c := range change {
		c(&settings)
	}
	in := New(Options{
		ID: "door", Keys: &keyTable{}, Settings: settings, Timeout: soon, MaxBodyBytes: 1 << 20, MaxInFlight: 10, BodyMemory: 8 << 20,
		Metrics: NewMetrics(reg), MetricsHandler: promhttp.HandlerFor(reg, promhttp.HandlerOpts{}), Logger: discard(),
	})
	page := &loginPage{}
	in.tokens = page.verifier()
	in.trust(loginIssuer())
	return in, page
}

func knock(h http.Handler, authorization ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, "/v1/models", nil)
	r.Header["Authorization"] = authorization
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestTokensBesideKeys(t *testing.T) {
	t.Parallel()
	in, page := door(t)
	h := in.Handler()
	for _, secret := range []string{jwt(), "a-static-secret-of-the-file"} {
		w := knock(h, "Bearer "+secret)
		require.Equal(t, http.StatusOK, w.Code, w.Body)
	}
	key, err := in.authenticate(asking(jwt(map[string]any{"models": "m"})))
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(key.ID, "jwt:login.example.com-") && strings.HasSuffix(key.ID, ":reader"), key.ID)
	require.Equal(t, "team", key.Tenant)
	require.Equal(t, []string{"m"}, key.Models)
	require.Equal(t, 1, page.reads)

	w := knock(h, "Bearer "+jwt(map[string]any{"exp": 1}))
	require.Equal(t, http.StatusUnauthorized, w.Code)
	require.Contains(t, w.Body.String(), `"code":"invalid_token"`)
	require.Equal(t, `Bearer realm="sluice", error="invalid_token", error_description="The token has expired."`, w.Header().Get("WWW-Authenticate"))

	in.trust()
	w = knock(h, "Bearer "+jwt())
	require.Equal(t, http.StatusUnauthorized, w.Code)
	require.Contains(t, w.Body.String(), `"code":"invalid_api_key"`, "while no issuer is configured, it is a key like any other")
}

func TestATokenOfAnIssuerThatIsAway(t *testing.T) {
	t.Parallel()
	in, page := door(t)
	page.err = errors.New("connection refused")
	w := knock(in.Handler(), "Bearer "+jwt())
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.NotEmpty(t, w.Header().Get("Retry-After"))
	require.Empty(t, w.Header().Get("WWW-Authenticate"))
}

func TestATokenThatSaysTooLittle(t *testing.T) {
	t.Parallel()
	in, _ := door(t)
	in.trust(token.Issuer{
		Issuer: loginURL, Audiences: []string{"sluice"}, KeysURL: loginURL + "keys", Algorithms: []string{"EdDSA"}, Refresh: time.Hour,
		SubjectClaim: "sub", TenantClaim: "organisation",
	})
	w := knock(in.Handler(), "Bearer "+jwt())
	require.Equal(t, http.StatusForbidden, w.Code, w.Body)
	require.Contains(t, w.Body.String(), `"code":"token_not_allowed"`)
}

// Who did not identify is told how; who did is told what was wrong (RFC 6750, 3).
func TestChallenges(t *testing.T) {
	t.Parallel()
	in, _ := door(t)
	h := in.Handler()
	for _, none := range [][]string{nil, {""}} {
		require.Equal(t, []string{realm}, knock(h, none...).Header().Values("WWW-Authenticate"))
	}
	for _, wrong := range [][]string{{"Bearer x"}, {"Basic x"}, {"Bearer a", "Bearer b"}, {"Bearer " + jwt(map[string]any{"aud": "x"})}} {
		w := knock(h, wrong...)
		require.Equal(t, http.StatusUnauthorized, w.Code)
		require.True(t, strings.HasPrefix(w.Header().Get("WWW-Authenticate"), realm+`, error="invalid_token", error_description="T`), w.Header())
	}
	require.Equal(t, realm+`, error="invalid_token", error_description="a b"`, challenge(inference.Errorf(inference.CodeInvalidToken, "a\\\" \nb\x7fé")))
}

func TestOneAuthorizationHeader(t *testing.T) {
	t.Parallel()
	in, _ := door(t)
	h := in.Handler()
	good := "Bearer a-static-secret-of-the-file"
	require.Equal(t, http.StatusOK, knock(h, good).Code)
	for _, headers := range [][]string{{good, good}, {good, "Bearer x"}, {"", good}, {good, "Bearer " + jwt()}} {
		require.Equal(t, http.StatusUnauthorized, knock(h, headers...).Code, "%q: whichever counts, another may count elsewhere", headers)
	}
}

// Secrets are found by their hash alone: nothing in the keyring knows one, so that no
// comparison can tell how much of it was right.
func TestSecretsAreNeverCompared(t *testing.T) {
	t.Parallel()
	in, _ := door(t)
	secret := apikey.Mint()
	db := &keyTable{}
	db.put(secret, store.Key{ID: "k"})
	in.keys.store = db
	for _, s := range []string{secret, jwt(), apikey.Mint()} {
		_, _ = in.authenticate(asking(s))
	}
	dump := fmt.Sprintf("%#v %#v %#v", in.current().callers.static, in.keys.known, in.keys.unknown)
	require.Contains(t, dump, `ID:"k"`)
	for _, s := range []string{secret, "a-static-secret-of-the-file", jwt()} {
		require.NotContains(t, dump, s)
	}
	for hash := range in.current().callers.static {
		require.Equal(t, apikey.Hash("a-static-secret-of-the-file"), hash)
	}
	_, there := in.keys.known.get(apikey.Hash(secret))
	require.True(t, there)
}

// wrongTokens are tokens of which none may pass, for one reason each.
func wrongTokens() []string {
	now := time.Now().Unix()
	payload := strings.Split(jwt(), ".")[1]
	unsigned := func(header string) string { return encode(header) + "." + payload + "." }
	mac := func(secret []byte) string {
		text := encode(`{"alg":"HS256","kid":"k"}`) + "." + payload
		h := hmac.New(sha256.New, secret)
		h.Write([]byte(text))
		return text + "." + encode(string(h.Sum(nil)))
	}
	public, _ := signingKey().Public().(ed25519.PublicKey)
	good := strings.Split(jwt(), ".")
	return []string{
		jwt(map[string]any{"exp": now - 3600}), jwt(map[string]any{"nbf": now + 3600}), jwt(map[string]any{"aud": "another"}),
		jwt(map[string]any{"iss": "https://evil.example"}), jwt(map[string]any{"tenant": 5}), jwt(map[string]any{"models": []string{}}),
		unsigned(`{"alg":"none"}`), unsigned(`{"alg":"NONE","kid":"k"}`), unsigned(`{"alg":"EdDSA","kid":"k"}`), mac(public), mac(nil),
		unsigned(`{"alg":"EdDSA","kid":"../../etc/passwd"}`), unsigned(`{"alg":"EdDSA","jku":"https://evil.example","x5u":"https://evil.example"}`),
		good[0] + "." + good[1] + "." + encode(strings.Repeat("x", 64)), "eyJ.e.", "eyJ..", strings.Repeat("eyJ", 10_000) + ".a.b",
	}
}

// Whatever stands in the header, nobody gets in with it who has neither key nor token, and
// nothing breaks.
func FuzzAuthorization(f *testing.F) {
	for _, secret := range append(wrongTokens(), "", "x", "sk-sluice-x", apikey.Mint(), strings.Repeat("k", 100_000), "a\x00b", "a\r\nb", "\xff\xfe", "é", " ") {
		for _, scheme := range []string{"Bearer ", "bearer\t", "BEARER   ", "Basic ", "Bearer", "", "Negotiate ", "Bearer Bearer "} {
			f.Add(scheme + secret)
		}
	}
	in, _ := door(f)
	h := in.Handler()
	f.Fuzz(func(t *testing.T, header string) {
		w := knock(h, header)
		switch w.Code {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestHeaderFieldsTooLarge:
		default:
			t.Fatalf("status %d for %q", w.Code, header)
		}
		if w.Code == http.StatusUnauthorized && w.Header().Get("WWW-Authenticate") == "" {
			t.Fatal("no challenge")
		}
		if secret := strings.TrimSpace(header[strings.IndexByte(header, ' ')+1:]); len(secret) > 20 && strings.Contains(w.Body.String()+fmt.Sprint(w.Header()), secret) {
			t.Fatal("the answer quotes the secret")
		}
	})
}

// The same over a connection, with what no client would send.
func TestAuthorizationOnTheWire(t *testing.T) {
	t.Parallel()
	in, _ := door(t)
	srv := httptest.NewUnstartedServer(in.Handler())
	srv.Config.MaxHeaderBytes = 64 << 10
	srv.Start()
	t.Cleanup(srv.Close)
	send := func(lines string) int {
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		require.NoError(t, err)
		defer conn.Close()
		go func() {
			_, _ = io.WriteString(conn, "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+lines+"\r\n")
		}()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	require.Equal(t, http.StatusOK, send("Authorization: Bearer "+jwt()+"\r\n"))
	require.Equal(t, http.StatusOK, send("authorization:   bearer "+jwt()+"  \r\n"))
	require.Equal(t, http.StatusUnauthorized, send("Authorization: Bearer "+jwt()+"\r\nAuthorization: Bearer "+jwt()+"\r\n"))
	require.Equal(t, http.StatusUnauthorized, send("Authorization: Bearer "+jwt(map[string]any{"x": strings.Repeat("x", 20_000)})+"\r\n"))
	require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, send("Authorization: Bearer "+strings.Repeat("x", 100_000)+"\r\n"))
	require.Equal(t, http.StatusBadRequest, send("Authorization: Bearer a\x00b\r\n"))
	require.Equal(t, http.StatusBadRequest, send("Authorization : Bearer "+jwt()+"\r\n"), "a space before the colon")
	require.NotEqual(t, http.StatusOK, send("Authorization: Bearer "+jwt()[:20]+"\r\n "+jwt()[20:]+"\r\n"), "a folded header")
}

// A batch of an issuer that is not ours any more is not begun.
func TestABatchWhoseIssuerIsGone(t *testing.T) {
	t.Parallel()
	in, _ := door(t)
	key, err := in.authenticate(asking(jwt(map[string]any{"models": "m"})))
	require.NoError(t, err)
	b := &store.Batch{ID: "batch_1", Tenant: key.Tenant, KeyID: key.ID, KeyName: key.Name, Caller: batchCallerOf(key)}
	caller, err := in.batchCaller(t.Context(), in.current().callers, b)
	require.NoError(t, err)
	require.Equal(t, []string{"m"}, caller.Models)
	_, err = in.batchRouter(t.Context(), b)
	require.NoError(t, err)
	in.trust()
	_, err = in.batchRouter(t.Context(), b)
	require.Equal(t, inference.CodeUnauthenticated, codeOf(err))
	require.Nil(t, batchCallerOf(store.Key{ID: "key", Models: []string{"m"}}), "a key is asked again")
}
