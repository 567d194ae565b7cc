package token

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func newEd(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune(seed)), ed25519.SeedSize)))
}

// signed is a token of a caller with a key of this id.
func signed(t testing.TB, id string, key ed25519.PrivateKey) string {
	t.Helper()
	header := claims{"kid": id}
	if id == "" {
		header = nil
	}
	return sign(t, "EdDSA", key, header, valid(claims{"exp": time.Now().Add(48 * time.Hour).Unix()}))
}

func TestKeysAreReadAgainInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := setup(t)
		stop := r.run(t)
		synctest.Wait()
		require.Equal(t, 1, r.keys.count(), "at the start, before anybody calls")
		time.Sleep(10 * r.issuer.Refresh)
		synctest.Wait()
		require.InDelta(t, 11, r.keys.count(), 1)
		require.InDelta(t, float64(r.keys.count()), r.counted(t, "sluice_jwks_refresh_total", "ok"), 0)
		stop()
		before := r.keys.count()
		time.Sleep(10 * r.issuer.Refresh)
		require.Equal(t, before, r.keys.count(), "nobody reads once Run has returned")
	})
}

// A key that the issuer has withdrawn is refused after the next reading, also of callers
// that were verified before.
func TestAWithdrawnKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := setup(t)
		defer r.run(t)()
		synctest.Wait()
		a, b := newEd('a'), newEd('b')
		r.keys.publish(jwk("a", a.Public()), jwk("b", b.Public()))
		time.Sleep(r.issuer.Refresh)
		synctest.Wait()
		raw := signed(t, "a", a)
		_, err := r.Verify(t.Context(), raw)
		require.NoError(t, err)
		r.keys.publish(jwk("b", b.Public()))
		_, err = r.Verify(t.Context(), raw)
		require.NoError(t, err, "nobody has read of it yet")
		for before := r.keys.count(); r.keys.count() == before; synctest.Wait() {
			_, err = r.Verify(t.Context(), raw) // so that it is remembered when the time comes
			require.NoError(t, err)
			time.Sleep(time.Second)
		}
		_, err = r.Verify(t.Context(), raw)
		require.Equal(t, reasonKey, reasonOf(t, err))
		_, err = r.Verify(t.Context(), signed(t, "b", b))
		require.NoError(t, err)
	})
}

// An issuer that signs with a new key is not waited for; and tokens with invented key ids
// do not make us trouble it.
func TestUnknownKeyIDs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := setup(t)
		defer r.run(t)()
		synctest.Wait()
		time.Sleep(time.Minute)
		next := newEd('n')
		r.keys.publish(jwk("ed", edKey().Public()), jwk("next", next.Public()))
		_, err := r.Verify(t.Context(), signed(t, "next", next))
		require.NoError(t, err, "read at once")
		require.Equal(t, 2, r.keys.count())

		began := time.Now()
		for i := range 1000 {
			_, err := r.Verify(t.Context(), signed(t, fmt.Sprint("invented-", i), next))
			require.Equal(t, reasonKey, reasonOf(t, err))
			time.Sleep(100 * time.Millisecond)
		}
		require.InDelta(t, time.Since(began)/apart, r.keys.count()-2, 1, "once in a while at most")
	})
}

// An issuer whose tokens name no key changes it as seamlessly.
func TestANewKeyWithoutAnID(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := setup(t)
		defer r.run(t)()
		a, b := newEd('a'), newEd('b')
		r.keys.publish(jwk("", a.Public()))
		synctest.Wait()
		_, err := r.Verify(t.Context(), signed(t, "", a))
		require.NoError(t, err)
		time.Sleep(time.Minute)
		r.keys.publish(jwk("", b.Public()))
		_, err = r.Verify(t.Context(), signed(t, "", b))
		require.NoError(t, err)
		_, err = r.Verify(t.Context(), signed(t, "", a))
		require.Equal(t, reasonSignature, reasonOf(t, err))
		require.Equal(t, 2, r.keys.count())
	})
}

func TestOneReadingForAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := setup(t)
		r.keys.gate = make(chan struct{})
		var callers sync.WaitGroup
		for i := range 50 {
			raw := ed(t, valid(claims{"sub": fmt.Sprint(i)}))
			callers.Go(func() {
				if _, err := r.Verify(t.Context(), raw); err != nil {
					t.Errorf("refused: %v", err)
				}
			})
		}
		synctest.Wait()
		require.Equal(t, 1, r.keys.count())
		close(r.keys.gate)
		callers.Wait()
		require.Equal(t, 1, r.keys.count())
	})
}

// While the issuer is away the last keys stay in use. A token that may be good is not
// called wrong.
func TestAnIssuerThatIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := setup(t)
		r.keys.fail(errors.New("connection refused"))
		defer r.run(t)()
		synctest.Wait()
		for range 10 {
			_, err := r.Verify(t.Context(), ed(t, valid()))
			require.Equal(t, inference.CodeAuthUnavailable, codeOf(err), "not 401: the token may be good")
			require.True(t, inference.AsError(err).Retryable)
		}
		require.Equal(t, 1, r.keys.count())
		r.keys.fail(nil)
		time.Sleep(retryAfter)
		synctest.Wait()
		require.Equal(t, 2, r.keys.count())
		_, err := r.Verify(t.Context(), ed(t, valid()))
		require.NoError(t, err, "tried again long before the next reading")

		r.keys.fail(errors.New("connection refused"))
		time.Sleep(24 * time.Hour)
		_, err = r.Verify(t.Context(), signed(t, "ed", edKey()))
		require.NoError(t, err, "the last keys are good")
		_, err = r.Verify(t.Context(), signed(t, "new", newEd('n')))
		require.Equal(t, inference.CodeAuthUnavailable, codeOf(err), "its key may be a new one")
		require.Equal(t, 2, strings.Count(r.logs.String(), "keys of the token issuer are not read"), "once for each time that it went away")
		require.Positive(t, r.counted(t, "sluice_jwks_refresh_total", "error"))
	})
}

// A set without a key that is of use is an issuer's mistake, and no reason to lock
// everybody out.
func TestAnEmptySetReplacesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := setup(t)
		defer r.run(t)()
		synctest.Wait()
		for _, raw := range []string{`{"keys":[]}`, `<html>`, strings.Repeat(" ", maxSetBytes+1)} {
			r.keys.mu.Lock()
			r.keys.raw = raw
			r.keys.mu.Unlock()
			time.Sleep(r.issuer.Refresh)
			_, err := r.Verify(t.Context(), signed(t, "ed", edKey()))
			require.NoError(t, err)
		}
		require.Positive(t, r.counted(t, "sluice_jwks_refresh_total", "error"))
	})
}

// A caller who goes away does not end the reading that others wait for, and none waits for
// ever.
func TestASlowIssuer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := setup(t)
		r.keys.gate = make(chan struct{})
		began := time.Now()
		_, err := r.Verify(t.Context(), ed(t, valid()))
		require.Equal(t, inference.CodeAuthUnavailable, codeOf(err))
		require.Equal(t, fetchTimeout, time.Since(began))
		close(r.keys.gate)
		time.Sleep(apart)
		_, err = r.Verify(t.Context(), ed(t, valid()))
		require.NoError(t, err)
	})
}

// Who comes while a reading hangs waits for that one, and not for another one behind it.
func TestATokenWaitsForOneReadingOfASlowIssuer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := setup(t)
		_, err := r.Verify(t.Context(), ed(t, valid()))
		require.NoError(t, err)
		r.keys.mu.Lock()
		r.keys.gate = make(chan struct{})
		r.keys.mu.Unlock()
		time.Sleep(time.Minute)
		var callers sync.WaitGroup
		for i := range 3 {
			raw := signed(t, fmt.Sprint("new-", i), newEd('n'))
			callers.Go(func() {
				began := time.Now()
				_, err := r.Verify(t.Context(), raw)
				if codeOf(err) != inference.CodeAuthUnavailable || time.Since(began) > fetchTimeout {
					t.Errorf("%v after %s", err, time.Since(began))
				}
			})
			time.Sleep(time.Second)
		}
		callers.Wait()
		require.Equal(t, 2, r.keys.count())
	})
}

// Whoever leaves waits no longer, and the reading that others wait for goes on.
func TestACallerWhoLeavesDoesNotWaitForASlowIssuer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := setup(t)
		r.keys.gate = make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		var stays sync.WaitGroup
		stays.Go(func() {
			time.Sleep(time.Second / 2)
			if _, err := r.Verify(t.Context(), ed(t, valid())); err != nil {
				t.Errorf("who stays: %v", err)
			}
		})
		_, err := r.Verify(ctx, ed(t, valid()))
		require.Equal(t, inference.CodeAuthUnavailable, codeOf(err))
		require.Equal(t, time.Second, time.Since(began))
		close(r.keys.gate)
		stays.Wait()
		require.Equal(t, 1, r.keys.count())
	})
}

// A reading that a token made us do, and that nobody waits for any more, ends with Run.
func TestAReadingThatWasAskedForEndsWithRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := setup(t)
		stop := r.run(t)
		synctest.Wait() // it has read the keys
		_, err := r.Verify(t.Context(), ed(t, valid()))
		require.NoError(t, err)
		r.keys.mu.Lock()
		r.keys.gate = make(chan struct{})
		r.keys.mu.Unlock()
		time.Sleep(apart)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = r.Verify(ctx, signed(t, "new", newEd('n')))
		require.Equal(t, inference.CodeAuthUnavailable, codeOf(err))
		began := time.Now()
		stop()
		require.Zero(t, time.Since(began))
		time.Sleep(apart)
		_, err = r.Verify(t.Context(), signed(t, "newer", newEd('n')))
		require.Equal(t, inference.CodeAuthUnavailable, codeOf(err))
		require.Equal(t, 2, r.keys.count(), "nobody would end it")
	})
}

func TestSettingsThatChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := setup(t)
		defer r.run(t)()
		synctest.Wait()
		raw := ed(t, valid())
		_, err := r.Verify(t.Context(), raw)
		require.NoError(t, err)
		require.True(t, r.Takes())

		narrow := r.issuer
		narrow.Audiences = []string{"other"}
		r.Use([]Issuer{narrow})
		_, err = r.Verify(t.Context(), raw)
		require.Equal(t, reasonAudience, reasonOf(t, err), "what was verified before counts no more")
		require.Equal(t, 1, r.keys.count(), "the keys are those that were read before")

		second := narrow
		second.Issuer, second.Refresh = "https://second.example", time.Minute
		r.Use([]Issuer{narrow, second})
		_, err = r.Verify(t.Context(), ed(t, valid(claims{"iss": second.Issuer, "aud": "other"})))
		require.NoError(t, err)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 2, r.keys.count(), "one address is read once, as often as the more impatient one wants")

		r.Use(nil)
		_, err = r.Verify(t.Context(), raw)
		require.Equal(t, reasonIssuer, reasonOf(t, err))
		require.False(t, r.Takes())
		time.Sleep(24 * time.Hour)
		require.Equal(t, 2, r.keys.count(), "nobody's keys are read for nobody")

		r.Use([]Issuer{r.issuer})
		synctest.Wait()
		require.Equal(t, 3, r.keys.count(), "a new issuer's keys are read at once")
	})
}

func TestNobodyIsRememberedTooLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := setup(t, func(i *Issuer) { i.Leeway = 0 })
		raw := ed(t, valid(claims{"exp": time.Now().Add(10 * time.Second).Unix()}))
		_, err := r.Verify(t.Context(), raw)
		require.NoError(t, err)
		time.Sleep(10*time.Second - time.Millisecond)
		_, err = r.Verify(t.Context(), raw)
		require.NoError(t, err)
		time.Sleep(time.Millisecond)
		_, err = r.Verify(t.Context(), raw)
		require.Equal(t, reasonExpired, reasonOf(t, err))
		require.Empty(t, r.known.byHash)
	})
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	t.Parallel()
	r := newRemembered()
	set := &issuers{}
	i := &issuer{source: &source{}}
	set.byName = map[string]*issuer{"": i}
	now := time.Now()
	hash := func(n int) (h [32]byte) {
		h[0], h[1] = byte(n), byte(n>>8)
		return h
	}
	for n := range rememberMost + 10 {
		r.put(&verdict{hash: hash(n), issuer: i, until: now.Add(time.Minute)})
		_, ok := r.get(hash(0), now, set)
		require.True(t, ok, "who calls often stays")
	}
	require.Len(t, r.byHash, rememberMost)
	require.Equal(t, rememberMost, r.used.Len())
	_, ok := r.get(hash(1), now, set)
	require.False(t, ok, "who does not, goes")
}

// The rest is about real servers.
func TestReadingOverHTTP(t *testing.T) {
	t.Parallel()
	key := jwk("ed", edKey().Public())
	good := must(key.MarshalJSON())
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintf(w, `{"keys":[%s]}`, good) })
	mux.HandleFunc("/huge", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"keys":[%s]}%s`, good, strings.Repeat(" ", maxSetBytes))
	})
	mux.HandleFunc("/missing", http.NotFound)
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write([]byte("{"))
	})
	mux.HandleFunc("/hop/{n}", func(w http.ResponseWriter, r *http.Request) {
		n := int(r.PathValue("n")[0] - '0')
		target := "/keys"
		if n > 1 {
			target = fmt.Sprint("/hop/", n-1)
		}
		http.Redirect(w, r, target, http.StatusFound)
	})
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://keys.example.com/", http.StatusFound)
	})
	transport := &http.Transport{DisableKeepAlives: true}
	for path, ok := range map[string]bool{
		"/keys": true, "/hop/1": true, "/hop/3": true, "/hop/4": false, "/away": false, "/huge": false, "/missing": false, "/cut": false,
	} {
		s := &source{url: strings.Replace(server.URL, "http://", "http://user:hush@", 1) + path + "?secret=hush", client: newClient(transport)}
		_, err := s.fetch(t.Context())
		require.Equal(t, ok, err == nil, "%s: %v", path, err)
		if err != nil {
			require.NotContains(t, err.Error(), "hush")
		}
	}
	server.Close()
	s := &source{url: server.URL + "/keys?secret=hush", client: newClient(transport)}
	_, err := s.fetch(t.Context())
	require.Error(t, err)
	require.NotContains(t, err.Error(), "hush")
}

func TestARedirectNeverLeavesHTTPS(t *testing.T) {
	t.Parallel()
	asked := 0
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	t.Cleanup(plain.Close)
	secure := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusFound))
	t.Cleanup(secure.Close)
	s := &source{url: secure.URL, client: newClient(secure.Client().Transport)}
	_, err := s.fetch(t.Context())
	require.ErrorContains(t, err, "leads away from https")
	require.Zero(t, asked)
}

func TestAddressesOfKeys(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"https://a.example/keys", "HTTPS://a", "http://localhost:8080/k", "http://127.0.0.1/k", "http://[::1]:1/k", "http://127.9.9.9"} {
		require.True(t, ValidKeysURL(address), address)
	}
	for _, address := range []string{
		"", "a.example", "https://", "https:a", "http://a.example/keys", "http://10.0.0.1/k", "http://localhost.evil.example", "http://127.0.0.1.evil.example",
		"file:///etc/passwd", "ftp://a", "://", "https://a b",
	} {
		require.False(t, ValidKeysURL(address), address)
	}
}

// What was accepted of a caller goes on while its issuer is one of ours.
func TestWhoVouchesForACaller(t *testing.T) {
	t.Parallel()
	r := setup(t)
	caller, err := r.Verify(t.Context(), ed(t, valid()))
	require.NoError(t, err)
	require.True(t, IsCaller(caller.ID))
	require.True(t, r.Vouches(caller.ID))
	_, _, known := r.now().CallerLimits(caller.ID)
	require.True(t, known)
	for _, id := range []string{"jwt:" + shortName(issuerURL) + ":", "jwt:" + shortName("https://evil.example") + ":reader", "reader"} {
		_, _, known = r.now().CallerLimits(id)
		require.False(t, known, id)
	}
	require.False(t, r.Vouches("jwt:"+shortName("https://evil.example")+":reader"))
	require.False(t, r.Vouches("config:reader"))
	r.Use(nil)
	require.False(t, r.Vouches(caller.ID))
	require.False(t, Trusted{}.Vouches(caller.ID))
}
