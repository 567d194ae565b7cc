package ingress

import (
	"slices"

	"sluice/store"
)

// knownKeys are keys by the hashes of the secrets that they were shown with. A key that
// was rotated has several.
type knownKeys struct {
	byHash map[[32]byte]store.Key
	hashes map[string][][32]byte // by the key's id
}

func newKnownKeys() knownKeys {
	return knownKeys{byHash: make(map[[32]byte]store.Key), hashes: make(map[string][][32]byte)}
}

func (k *knownKeys) get(hash [32]byte) (store.Key, bool) {
	key, ok := k.byHash[hash]
	return key, ok
}

func (k *knownKeys) put(hash [32]byte, key store.Key) {
	if len(k.byHash) >= keysKnown { // they come back, one look-up each
		clear(k.byHash)
		clear(k.hashes)
	}
	k.byHash[hash] = key
	if all := k.hashes[key.ID]; !slices.Contains(all, hash) {
		k.hashes[key.ID] = append(all, hash)
	}
}

// of returns the key with the id, if it is known.
func (k *knownKeys) of(id string) (store.Key, bool) {
	hashes := k.hashes[id]
	if len(hashes) == 0 {
		return store.Key{}, false
	}
	return k.get(hashes[0]) // they all lead to the same
}

// change has a key that is known be known as it is now, by every secret that it was ever
// shown with: also by one that the key itself has forgotten.
func (k *knownKeys) change(key store.Key) {
	for _, hash := range k.hashes[key.ID] {
		k.byHash[hash] = key
	}
}
