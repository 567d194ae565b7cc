package ingress

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"sluice/internal/apikey"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/routing"
	"sluice/internal/token"
	"sluice/store"
)

// KeyStore is what the ingress needs of the database to know its callers.
type KeyStore interface {
	KeyByHash(ctx context.Context, hash [32]byte) (store.Key, error)
	KeysChangedSince(ctx context.Context, since time.Time) ([]store.Key, time.Time, error)
}

// keyring knows the callers. Keys of the database are remembered once they were used,
// and the database is asked every second which keys have changed: a request costs no
// look-up, a revoked key is refused within seconds, and a database that is down stops
// nobody who was known before.
type keyring struct {
	store KeyStore
	log   *slog.Logger

	tenants *tenants // nil: none is disabled

	lookups singleflight.Group
	slots   chan struct{} // bounds the look-ups at once

	mu      sync.RWMutex
	known   knownKeys
	unknown map[[32]byte]time.Time // refused lately; until when
}

// Bounds of the keyring.
const (
	keysPoll    = time.Second
	keysKnown   = 100_000
	keysUnknown = 10_000
	unknownFor  = 2 * time.Second
	keyLookups  = 16
	maxKeyBytes = 512
)

func newKeyring(db KeyStore, log *slog.Logger) *keyring {
	return &keyring{
		store: db, log: log, slots: make(chan struct{}, keyLookups),
		known: newKnownKeys(), unknown: make(map[[32]byte]time.Time),
	}
}

// callers are whom one configuration knows, beside those of the database: the holders of
// its keys, and of tokens of its issuers. They are not changed.
type callers struct {
	static map[[32]byte]store.Key
	tokens token.Trusted
}

func newCallers(static []store.Key, tokens token.Trusted) callers {
	byHash := make(map[[32]byte]store.Key, len(static))
	for _, key := range static {
		byHash[key.Hash] = key
	}
	return callers{static: byHash, tokens: tokens}
}

// authenticate returns the key that the request carries, or what stands for one if it
// carries a token.
func (k *keyring) authenticate(r *http.Request, c callers) (store.Key, error) {
	secret, err := c.bearer(r)
	if err != nil {
		return store.Key{}, err
	}
	key, err := k.identify(r.Context(), c, secret)
	if err != nil {
		return store.Key{}, err
	}
	if err := k.tenants.admits(key.Tenant); err != nil {
		return store.Key{}, err
	}
	return key, nil
}

// identify returns whose secret or token it is, if that holds now.
func (k *keyring) identify(ctx context.Context, c callers, secret string) (store.Key, error) {
	if c.isToken(secret) {
		return c.tokens.Verify(ctx, secret)
	}
	key, err := k.lookup(ctx, c, secret)
	if err != nil {
		return store.Key{}, err
	}
	switch now := time.Now(); {
	case !key.RevokedAt.IsZero():
		return store.Key{}, inference.Errorf(inference.CodeUnauthenticated, "This API key was revoked.")
	case len(key.Replaced) > 0 && !key.OpensWith(apikey.Hash(secret), now):
		return store.Key{}, inference.Errorf(inference.CodeUnauthenticated, "This API key was rotated, and its old secret is not valid any more. Use the new one.")
	case !key.Active(now):
		return store.Key{}, inference.Errorf(inference.CodeUnauthenticated, "This API key has expired.")
	}
	return key, nil
}

// mayUse reports whether the key may ask for the model.
func mayUse(key store.Key, model string) bool {
	return len(key.Models) == 0 || routing.MatchesAny(key.Models, model)
}

func errUnknownKey() error {
	return inference.Errorf(inference.CodeUnauthenticated, "This API key is not known.")
}

// lookup compares hashes of secrets, never the secrets themselves, so that the time
// it takes tells nothing about them.
func (k *keyring) lookup(ctx context.Context, c callers, secret string) (store.Key, error) {
	hash := apikey.Hash(secret)
	if key, ok := c.static[hash]; ok {
		return key, nil
	}
	k.mu.RLock()
	key, ok := k.known.get(hash)
	refusedUntil := k.unknown[hash]
	k.mu.RUnlock()
	switch {
	case ok:
		return key, nil
	case !apikey.WellFormed(secret), time.Now().Before(refusedUntil):
		return store.Key{}, errUnknownKey()
	}
	v, err, _ := k.lookups.Do(string(hash[:]), func() (any, error) { return k.fetch(context.WithoutCancel(ctx), hash) })
	key, _ = v.(store.Key)
	return key, err
}

func (k *keyring) fetch(ctx context.Context, hash [32]byte) (store.Key, error) {
	k.mu.RLock()
	key, ok := k.known.get(hash)
	k.mu.RUnlock()
	if ok {
		return key, nil // another caller's look-up ended just now
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	select {
	case k.slots <- struct{}{}:
		defer func() { <-k.slots }()
	case <-ctx.Done():
		return store.Key{}, errAuthUnavailable(ctx.Err())
	}
	key, err := k.store.KeyByHash(ctx, hash)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case errors.Is(err, store.ErrNotFound):
		if len(k.unknown) >= keysUnknown {
			clear(k.unknown)
		}
		k.unknown[hash] = time.Now().Add(unknownFor)
		return store.Key{}, errUnknownKey()
	case err != nil:
		k.log.Warn("key not looked up", "error", err)
		return store.Key{}, errAuthUnavailable(err)
	}
	k.known.put(hash, key)
	return key, nil
}

func errAuthUnavailable(err error) error {
	return &inference.Error{Code: inference.CodeAuthUnavailable, Retryable: true, Message: "The API key cannot be checked at the moment.", Err: err}
}

// limitsNow returns the own limits that a key has by now, without a question to the
// database. Those that a token carries, or of a key that is not known any more, stay as they
// were.
func (k *keyring) limitsNow(now *Settings, adm *admission) *limits.Limits {
	id := adm.job.KeyID
	for i := range now.StaticKeys {
		if now.StaticKeys[i].ID == id {
			return now.StaticKeys[i].Limits
		}
	}
	if own, _, known := adm.settings.callers.tokens.CallerLimits(id); known && own == adm.ownLimits { // the issuer's
		if own, _, known = now.callers.tokens.CallerLimits(id); known {
			return own
		}
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	if key, ok := k.known.of(id); ok {
		return key.Limits
	}
	return adm.ownLimits
}

// run keeps the known keys current until ctx ends.
func (k *keyring) run(ctx context.Context) {
	tick := time.NewTicker(keysPoll)
	defer tick.Stop()
	since := time.Now().Add(-time.Hour) // by then nothing was known here; later times are the database's own
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		changed, next, err := k.store.KeysChangedSince(ctx, since)
		if err != nil {
			if !failing && ctx.Err() == nil {
				k.log.Warn("changes of keys are not seen", "error", err)
			}
			failing = true
			continue
		}
		failing, since = false, next
		k.mu.Lock()
		for _, key := range changed {
			delete(k.unknown, key.Hash)
			k.known.change(key)
		}
		k.mu.Unlock()
	}
}
