package token

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"sluice/internal/limits"
	"sluice/store"
)

// Issuer is whose tokens are taken, and what they must keep to.
type Issuer struct {
	Issuer     string   // the claim iss, exactly
	Audiences  []string // the claim aud holds one of these
	KeysURL    string   // of its JWK Set
	Algorithms []string
	Refresh    time.Duration // how long its keys are used before they are read again
	Leeway     time.Duration // between its clock and ours

	SubjectClaim string
	TenantClaim  string
	Tenant       string // of tokens without that claim; empty: they are refused
	ModelsClaim  string // empty: tokens do not bound models
	LimitsClaim  string // empty: tokens carry no limits
	Limits       *limits.Limits
}

// Options are what a verifier is made of.
type Options struct {
	Metrics   *Metrics
	Logger    *slog.Logger
	Transport http.RoundTripper // to the issuers; nil: an ordinary one, through the proxy that the environment names
}

// Verifier tells who sends a token. It is used by many at once.
type Verifier struct {
	metrics *Metrics
	log     *slog.Logger
	client  *http.Client

	known  *remembered
	wake   chan struct{}
	asking askings

	use sync.Mutex // one change of the issuers at a time
	set atomic.Pointer[issuers]
}

// issuers are those whose tokens are taken at one time. They are not changed.
type issuers struct {
	byName  map[string]*issuer
	sources map[string]*source // by address: two issuers may share one
}

// issuer is an Issuer with its keys.
type issuer struct {
	Issuer
	short      string
	algorithms []jose.SignatureAlgorithm
	source     *source
}

// NewVerifier returns a verifier that takes no tokens until Use says whose.
func NewVerifier(o Options) *Verifier {
	v := &Verifier{
		metrics: o.Metrics, log: o.Logger, client: newClient(o.Transport), known: newRemembered(), wake: make(chan struct{}, 1),
	}
	v.set.Store(&issuers{})
	return v
}

// Use replaces the issuers. Keys that were read from an address stay in use for whoever
// has the same.
//
// It returns whom the verifier trusts from here on. Who holds on to that goes on with it,
// whatever is used later.
func (v *Verifier) Use(list []Issuer) Trusted {
	v.use.Lock()
	defer v.use.Unlock()
	before := v.set.Load()
	next := &issuers{byName: make(map[string]*issuer, len(list)), sources: make(map[string]*source, len(list))}
	refresh := make(map[string]time.Duration, len(list))
	for _, settings := range list {
		i := &issuer{Issuer: settings, short: shortName(settings.Issuer)}
		for _, alg := range settings.Algorithms {
			i.algorithms = append(i.algorithms, jose.SignatureAlgorithm(alg))
		}
		address := settings.KeysURL
		i.source = next.sources[address]
		if i.source == nil {
			if i.source = before.sources[address]; i.source == nil {
				i.source = &source{url: address, client: v.client, metrics: v.metrics, log: v.log, asking: &v.asking}
			}
			next.sources[address] = i.source
			refresh[address] = settings.Refresh
		}
		refresh[address] = min(refresh[address], settings.Refresh)
		next.byName[settings.Issuer] = i
	}
	for address, s := range next.sources {
		s.every(refresh[address])
	}
	v.set.Store(next)
	select {
	case v.wake <- struct{}{}:
	default:
	}
	return Trusted{verifier: v, set: next}
}

// Trusted are the issuers whose tokens are taken at one time. The zero value takes none.
type Trusted struct {
	verifier *Verifier
	set      *issuers
}

// Takes reports whether tokens of any issuer are taken.
func (t Trusted) Takes() bool { return t.set != nil && len(t.set.byName) > 0 }

// Vouches reports whether the caller of this id is one of an issuer whose tokens are taken
// here. Work that was accepted of it may begin later than its token ends.
func (t Trusted) Vouches(id string) bool { return t.issuerOf(id) != nil }

// CallerLimits returns the limits that the caller of this id has when its token bounds
// nothing (nil: those of keys without), and the claim in which it may say others, if there
// is one. It reports whether the caller can be one of an issuer whose tokens are taken here.
func (t Trusted) CallerLimits(id string) (own *limits.Limits, claim string, known bool) {
	i := t.issuerOf(id)
	if i == nil {
		return nil, "", false
	}
	return i.Limits, i.LimitsClaim, len(id) > len(i.callers())
}

func (t Trusted) issuerOf(id string) *issuer {
	if t.set == nil {
		return nil
	}
	for _, i := range t.set.byName {
		if strings.HasPrefix(id, i.callers()) {
			return i
		}
	}
	return nil
}

// idle is how long Run sleeps when there is nothing to read; Use wakes it.
const idle = time.Hour

// Run keeps the keys of the issuers current until ctx ends.
func (v *Verifier) Run(ctx context.Context) {
	var reads sync.WaitGroup
	defer reads.Wait()
	v.asking.begin()
	defer v.asking.end()
	reading := make(map[*source]bool)
	done := make(chan *source)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-v.wake:
		case s := <-done:
			delete(reading, s)
		}
		next, now := idle, time.Now()
		for _, s := range v.set.Load().sources {
			wait := s.dueIn(now)
			switch {
			case reading[s]:
			case wait > 0:
				next = min(next, wait)
			default:
				reading[s] = true
				reads.Go(func() {
					s.readNow(ctx)
					select {
					case done <- s:
					case <-ctx.Done():
					}
				})
			}
		}
		timer.Reset(next)
	}
}

// Verify returns the caller whose token it is. The error is an *inference.Error that never
// shows anything of the token.
func (t Trusted) Verify(ctx context.Context, raw string) (store.Key, error) {
	v, set, now := t.verifier, t.set, time.Now()
	hash := sha256.Sum256([]byte(raw))
	if caller, ok := v.known.get(hash, now, set); ok {
		return caller, nil
	}
	found, err := verify(ctx, raw, set, now)
	if err != nil {
		r, ok := errors.AsType[*refusal](err)
		if !ok {
			return store.Key{}, err
		}
		v.metrics.refused.WithLabelValues(string(r.reason)).Inc()
		return store.Key{}, r.public()
	}
	found.hash = hash
	found.until = now.Add(rememberFor)
	if ends := found.caller.ExpiresAt; ends.Before(found.until) {
		found.until = ends
	}
	v.known.put(found)
	return found.caller, nil
}

// verify checks a token from its form to its last claim.
func verify(ctx context.Context, raw string, set *issuers, now time.Time) (*verdict, error) {
	u, err := parse(raw)
	if err != nil {
		return nil, err
	}
	i := set.byName[u.issuer]
	if i == nil {
		return nil, refuse(reasonIssuer, "Tokens of this issuer are not taken.")
	}
	if !slices.Contains(i.Algorithms, u.alg) {
		return nil, refuse(reasonAlgorithm, "The token is signed with an algorithm that is not taken.")
	}
	keys, err := i.verifySignature(ctx, raw, u)
	if err != nil {
		return nil, err
	}
	ends, err := checkTimes(u.claims, now, i.Leeway)
	if err != nil {
		return nil, err
	}
	if err := checkAudience(u.claims, i.Audiences); err != nil {
		return nil, err
	}
	caller, err := i.caller(u.claims, ends)
	return &verdict{caller: caller, keys: keys, issuer: i}, err
}

// verifySignature returns the key set with one of whose keys the token is signed.
func (i *issuer) verifySignature(ctx context.Context, raw string, u unverified) (*keySet, error) {
	signed, err := jose.ParseSignedCompact(raw, i.algorithms)
	if err != nil {
		return nil, refuse(reasonMalformed, "The token is malformed.")
	}
	keys, set, err := i.source.find(ctx, u.kid, u.alg)
	if err != nil {
		return nil, err
	}
	signer := func(keys []publicKey) bool {
		return slices.ContainsFunc(keys, func(k publicKey) bool {
			_, err := signed.Verify(k.key)
			return err == nil
		})
	}
	if signer(keys) {
		return set, nil
	}
	if u.kid == "" { // it may be signed with a key that the issuer has only now
		if keys, set, err = i.source.findLater(ctx, set, u.alg); err != nil {
			return nil, err
		}
		if signer(keys) {
			return set, nil
		}
	}
	if len(keys) == 0 {
		return nil, refuse(reasonKey, "The key that the token is signed with is not among its issuer's.")
	}
	return nil, refuse(reasonSignature, "The token's signature is wrong.")
}
