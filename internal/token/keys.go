package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// Bounds of a set of keys. Issuers have two or three.
const (
	maxSetBytes = 1 << 20
	maxKeys     = 256
	minRSABits  = 2048 // RFC 7518, 3.3
	maxRSABits  = 8192 // one that is longer would only cost us time
	maxTries    = 4    // keys that a token without a key id may be meant for
)

// keySet is the keys of an issuer as they were read at one time. It is not changed.
type keySet struct {
	keys []publicKey
}

// publicKey is one key that may verify signatures.
type publicKey struct {
	id  string
	alg string // the only one that it is for; empty: any that fits
	key crypto.PublicKey
}

// parseKeySet reads a JWK Set (RFC 7517, 5). Keys that are of no use here are left out:
// those for encryption, of kinds that are not known, too short ones, and any that is not
// public, which verifies nothing that its issuer alone could have signed.
func parseKeySet(text []byte) (*keySet, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if tooDeep(text) {
		return nil, errors.New("key set is nested too deeply")
	}
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, fmt.Errorf("parse key set: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("key set has more than %d keys", maxKeys)
	}
	ks := &keySet{}
	for _, raw := range set.Keys {
		if k, ok := parseKey(raw); ok {
			ks.keys = append(ks.keys, k)
		}
	}
	if len(ks.keys) == 0 {
		return nil, errors.New("key set has no key that can verify tokens")
	}
	return ks, nil
}

func parseKey(raw []byte) (publicKey, bool) {
	var use struct {
		Operations []string `json:"key_ops"`
	}
	var k jose.JSONWebKey
	if k.UnmarshalJSON(raw) != nil || json.Unmarshal(raw, &use) != nil {
		return publicKey{}, false
	}
	if k.Use != "" && k.Use != "sig" || !verifies(use.Operations) || len(k.KeyID) > maxKeyID || !usable(k.Key) {
		return publicKey{}, false
	}
	return publicKey{id: k.KeyID, alg: k.Algorithm, key: k.Key}, true
}

// verifies reports whether the operations of a key, if it names any, hold verifying.
func verifies(operations []string) bool {
	return len(operations) == 0 || slices.Contains(operations, "verify")
}

func usable(key any) bool {
	switch key := key.(type) {
	case *rsa.PublicKey:
		return key.N.BitLen() >= minRSABits && key.N.BitLen() <= maxRSABits
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	}
	return false // also private keys and shared secrets
}

// fits reports whether the key is made for signatures of the algorithm.
func (k publicKey) fits(alg string) bool {
	if k.alg != "" && k.alg != alg {
		return false
	}
	switch key := k.key.(type) {
	case *rsa.PublicKey:
		switch alg {
		case "RS256", "RS384", "RS512", "PS256", "PS384", "PS512":
			return true
		}
	case *ecdsa.PublicKey:
		return key.Curve == curves[alg]
	case ed25519.PublicKey:
		return alg == "EdDSA"
	}
	return false
}

// curves are those that the algorithms of ECDSA are defined for (RFC 7518, 3.4).
var curves = map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()}

// choose returns the keys that a signature of the algorithm may be made with: those of the
// id, or a few of those that fit when the token names none. named reports whether the id
// is in the set at all.
func (ks *keySet) choose(id, alg string) (keys []publicKey, named bool) {
	for _, k := range ks.keys {
		if id != "" && k.id != id {
			continue
		}
		named = true
		if k.fits(alg) && len(keys) < maxTries {
			keys = append(keys, k)
		}
	}
	return keys, named
}
