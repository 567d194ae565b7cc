package ingress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/apikey"
	"sluice/internal/inference"
	"sluice/internal/token"
	"sluice/store"
)

// keyTable is a database of keys that can be slow or down.
type keyTable struct {
	mu      sync.Mutex
	keys    map[[32]byte]store.Key
	changed []store.Key
	lookups int
	polls   int
	err     error
	gate    chan struct{} // if set, look-ups wait for it
}

func (k *keyTable) KeyByHash(ctx context.Context, hash [32]byte) (store.Key, error) {
	k.mu.Lock()
	k.lookups++
	gate := k.gate
	k.mu.Unlock()
	if ctx.Err() != nil {
		return store.Key{}, ctx.Err()
	}
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return store.Key{}, ctx.Err()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return store.Key{}, k.err
	}
	key, ok := k.keys[hash]
	if !ok {
		return store.Key{}, fmt.Errorf("look up key: %w", store.ErrNotFound)
	}
	return key, nil
}

func (k *keyTable) KeysChangedSince(_ context.Context, since time.Time) ([]store.Key, time.Time, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.polls++
	if k.err != nil {
		return nil, since, k.err
	}
	changed := k.changed
	k.changed = nil
	return changed, since.Add(time.Second), nil
}

func (k *keyTable) put(secret string, key store.Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key.Hash = apikey.Hash(secret)
	if k.keys == nil {
		k.keys = make(map[[32]byte]store.Key)
	}
	k.keys[key.Hash] = key
	k.changed = append(k.changed, key)
}

func (k *keyTable) set(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err = err
}

func (k *keyTable) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lookups
}

// ring is a keyring beside the callers of a configuration.
type ring struct {
	*keyring
	callers callers
}

func ringOf(db KeyStore, static []store.Key) ring {
	return ring{newKeyring(db, discard()), newCallers(static, token.Trusted{})}
}

func (k ring) authenticate(r *http.Request) (store.Key, error) {
	return k.keyring.authenticate(r, k.callers)
}

func asking(secret string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	r.Header.Set("Authorization", "Bearer "+secret)
	return r
}

func codeOf(err error) inference.ErrorCode {
	if err == nil {
		return ""
	}
	return inference.AsError(err).Code
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestAuthenticationHeaders(t *testing.T) {
	t.Parallel()
	db := &keyTable{}
	good := apikey.Mint()
	db.put(good, store.Key{ID: "k1"})
	k := ringOf(db, []store.Key{{ID: "static", Hash: apikey.Hash("a-static-secret")}})
	for header, want := range map[string]string{
		"Bearer " + good:          "k1",
		"bearer   " + good + " ":  "k1",
		"Bearer a-static-secret":  "static",
		"":                        "",
		"Bearer":                  "",
		"Bearer ":                 "",
		good:                      "",
		"Basic " + good:           "",
		"Bearer " + apikey.Mint(): "",
		"Bearer not-well-formed":  "",
		"Bearer " + strings.Repeat("x", maxKeyBytes+1): "",
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set("Authorization", header)
		key, err := k.authenticate(r)
		require.Equal(t, want, key.ID, "%q", header)
		if want == "" {
			require.Equal(t, inference.CodeUnauthenticated, codeOf(err), "%q", header)
			require.NotContains(t, err.Error(), good, "no secret in an error")
		}
	}
}

func TestOnlyWellFormedSecretsReachTheDatabase(t *testing.T) {
	t.Parallel()
	db := &keyTable{}
	k := ringOf(db, nil)
	_, err := k.authenticate(asking("sk-sluice-invented"))
	require.Equal(t, inference.CodeUnauthenticated, codeOf(err))
	require.Zero(t, db.count())

	unknown := apikey.Mint()
	for range 10 {
		_, err = k.authenticate(asking(unknown))
		require.Equal(t, inference.CodeUnauthenticated, codeOf(err))
	}
	require.Equal(t, 1, db.count(), "a refusal is remembered for a moment")
}

func TestAKnownKeyCostsOneLookUp(t *testing.T) {
	t.Parallel()
	db := &keyTable{gate: make(chan struct{})}
	secret := apikey.Mint()
	db.put(secret, store.Key{ID: "k1"})
	k := ringOf(db, nil)
	var callers sync.WaitGroup
	for range 20 {
		callers.Go(func() {
			key, err := k.authenticate(asking(secret))
			if err != nil || key.ID != "k1" {
				t.Errorf("refused: %v", err)
			}
		})
	}
	require.Eventually(t, func() bool { return db.count() > 0 }, 10*time.Second, time.Millisecond)
	close(db.gate)
	callers.Wait()
	require.Equal(t, 1, db.count(), "all of them share one look-up, and its result is remembered")
}

// The first caller's going away does not fail those who wait for the same look-up.
func TestALookUpOutlivesItsFirstCaller(t *testing.T) {
	t.Parallel()
	db := &keyTable{}
	secret := apikey.Mint()
	db.put(secret, store.Key{ID: "k1"})
	k := ringOf(db, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := k.authenticate(asking(secret).WithContext(ctx))
	require.NoError(t, err)
}

func TestExpiredAndRevokedKeys(t *testing.T) {
	t.Parallel()
	db := &keyTable{}
	expired, revoked := apikey.Mint(), apikey.Mint()
	db.put(expired, store.Key{ID: "k1", ExpiresAt: time.Now().Add(-time.Second)})
	db.put(revoked, store.Key{ID: "k2", RevokedAt: time.Now().Add(time.Hour)})
	k := ringOf(db, nil)
	_, err := k.authenticate(asking(expired))
	require.Contains(t, inference.AsError(err).Message, "expired")
	_, err = k.authenticate(asking(revoked))
	require.Contains(t, inference.AsError(err).Message, "revoked")
}

func TestDatabaseDown(t *testing.T) {
	t.Parallel()
	db := &keyTable{}
	known, other := apikey.Mint(), apikey.Mint()
	db.put(known, store.Key{ID: "k1"})
	db.put(other, store.Key{ID: "k2"})
	k := ringOf(db, nil)
	_, err := k.authenticate(asking(known))
	require.NoError(t, err)

	db.set(errors.New("connection refused"))
	_, err = k.authenticate(asking(known))
	require.NoError(t, err, "who was known before is served")
	_, err = k.authenticate(asking(other))
	require.Equal(t, inference.CodeAuthUnavailable, codeOf(err), "not 401: the key may be good")

	db.set(nil)
	_, err = k.authenticate(asking(other))
	require.NoError(t, err, "a database that was away is not held against the key")
}

func TestKeyChangesAreSeenWithinSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := &keyTable{}
		secret, late := apikey.Mint(), apikey.Mint()
		db.put(secret, store.Key{ID: "k1"})
		k := ringOf(db, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			k.run(ctx)
		}()
		_, err := k.authenticate(asking(secret))
		require.NoError(t, err)
		_, err = k.authenticate(asking(late))
		require.Error(t, err)

		db.set(errors.New("down"))
		time.Sleep(3 * time.Second)
		synctest.Wait()
		db.set(nil)

		db.put(secret, store.Key{ID: "k1", RevokedAt: time.Now()})
		db.put(late, store.Key{ID: "k2"})
		db.put(apikey.Mint(), store.Key{ID: "k3"})
		time.Sleep(2 * keysPoll)
		synctest.Wait()
		_, err = k.authenticate(asking(secret))
		require.Contains(t, inference.AsError(err).Message, "revoked")
		_, err = k.authenticate(asking(late))
		require.NoError(t, err, "a key made just now is not refused because it was unknown a moment ago")
		require.Len(t, k.known.byHash, 2, "keys that nobody uses here are not remembered")
		require.Equal(t, 3, db.count())
		cancel()
		<-done
	})
}

func TestARefusalIsForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := &keyTable{}
		k := ringOf(db, nil)
		secret := apikey.Mint()
		_, err := k.authenticate(asking(secret))
		require.Error(t, err)
		db.put(secret, store.Key{ID: "k"})
		time.Sleep(unknownFor)
		_, err = k.authenticate(asking(secret))
		require.NoError(t, err)
	})
}

func TestKeyringIsBounded(t *testing.T) {
	t.Parallel()
	db := &keyTable{}
	secret := apikey.Mint()
	db.put(secret, store.Key{ID: "k"})
	k := ringOf(db, nil)
	for i := range keysUnknown {
		k.unknown[apikey.Hash(fmt.Sprint(i))] = time.Now()
	}
	for i := range keysKnown {
		k.known.put(apikey.Hash(fmt.Sprint(i)), store.Key{ID: fmt.Sprint(i)})
	}
	_, err := k.authenticate(asking(apikey.Mint()))
	require.Error(t, err)
	require.LessOrEqual(t, len(k.unknown), keysUnknown)
	_, err = k.authenticate(asking(secret))
	require.NoError(t, err)
	require.LessOrEqual(t, len(k.known.byHash), keysKnown)
	require.LessOrEqual(t, len(k.known.hashes), keysKnown)
}

// Look-ups at once are bounded, and whoever finds no place is told in time.
func TestLookUpsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := &keyTable{gate: make(chan struct{})}
		k := ringOf(db, nil)
		var callers sync.WaitGroup
		for range keyLookups + 5 {
			secret := apikey.Mint()
			callers.Go(func() {
				_, err := k.authenticate(asking(secret))
				if codeOf(err) != inference.CodeAuthUnavailable {
					t.Errorf("got %v", err)
				}
			})
		}
		synctest.Wait()
		require.Equal(t, keyLookups, db.count())
		callers.Wait() // nobody opened the gate: every wait is bounded
	})
}
