package cache

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
)

// format is the version of what a key is made of. Another version finds nothing of this
// one's.
const format = "sluice-answer-1"

// Key is what an answer is found by.
type Key [sha256.Size]byte

// Question is what decides on an answer, and who may have it.
type Question struct {
	Tenant string
	KeyID  string // empty: all keys of the tenant share the answer
	Kind   inference.Kind
	Model  string // as it was asked for, an alias replaced, without its provider
	Body   []byte // checked
}

// Base is the part of a key that the request decides on. Whoever is asked is the other
// part.
type Base [sha256.Size]byte

// Base returns the request's part of the key. The error says that the request has none.
func (q Question) Base() (b Base, err error) {
	h := sha256.New()
	for _, text := range []string{format, q.Tenant, q.KeyID, string(q.Kind), q.Model} {
		part(h, text)
	}
	if err := openaiapi.WriteCanonical(h, q.Body); err != nil {
		return Base{}, fmt.Errorf("key of a request: %w", err)
	}
	h.Sum(b[:0])
	return b, nil
}

// Of returns the key of the candidate's answer. A rule of routing may send two requests to
// two models that differ in nothing but a header, a user or the metadata, and chance may,
// too: an answer is kept for the provider and the model that gave it, and looked for under
// those that would be asked.
func (b Base) Of(c inference.Candidate) (k Key) {
	h := sha256.New()
	_, _ = h.Write(b[:]) // a hash takes everything
	part(h, c.Provider)
	part(h, c.Model)
	h.Sum(k[:0])
	return k
}

// part adds a text with its length before it: two parts never look like two others.
func part(h hash.Hash, text string) {
	var length [8]byte
	binary.BigEndian.PutUint64(length[:], uint64(len(text)))
	_, _ = h.Write(length[:]) // a hash takes everything
	_, _ = io.WriteString(h, text)
}
