package ingress

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/store"
)

// keyed has every POST done once that carries an idempotency key. An upload is not read
// ahead: it comes to once by itself, when its form has been read.
func (s *Ingress) keyed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, there := r.Header[idempotencyHeader]; !there || r.Method != http.MethodPost || r.URL.Path == filesPath {
			next.ServeHTTP(w, r)
			return
		}
		s.readKeyed(w, r, next)
	})
}

// readKeyed reads the request as its handler will do once more, from memory.
func (s *Ingress) readKeyed(w http.ResponseWriter, r *http.Request, next http.Handler) {
	arrived := time.Now()
	q, err := s.keyedRequest(r)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	memory := &share{of: &s.flights.bodies}
	defer memory.release()
	body, err := s.readBody(w, r, memory, arrived.Add(q.timeout))
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	q.hash = sameness(r, body)
	q.creates = r.URL.Path == batchesPath || s.answersLater(r)
	if r.URL.Path == chatPath && !q.creates {
		if req, err := openaiapi.ParseChat(body); err == nil && req.Stream {
			q.follow = func(w http.ResponseWriter, r *http.Request, jobID string) bool {
				return s.followJob(w, r, q.caller.Tenant, jobID)
			}
		}
	}
	again := r.WithContext(r.Context())
	again.Body, again.ContentLength = &heldBody{Reader: bytes.NewReader(body), body: body, memory: memory}, int64(len(body))
	s.once(w, again, q, next.ServeHTTP)
}

// keyedRequest returns what the request's headers say, which is all but its hash. Without
// an idempotency key it is the caller alone.
func (s *Ingress) keyedRequest(r *http.Request) (q keyedRequest, err error) {
	if q.caller, err = s.authenticate(r); err != nil {
		return q, err
	}
	if q.name, err = idempotencyKey(r); err != nil || q.name == "" {
		return q, err
	}
	q.timeout, err = durationHeader(r, "X-Sluice-Timeout", s.opt.Timeout, s.opt.Timeout)
	return q, err
}

// idempotencyKey returns the request's key, or none if it has none.
func idempotencyKey(r *http.Request) (string, error) {
	values, there := r.Header[idempotencyHeader]
	if !there {
		return "", nil
	}
	visible := func(c rune) bool { return c > ' ' && c <= '~' }
	if len(values) != 1 || values[0] == "" || len(values[0]) > store.MaxIdempotencyKeyBytes ||
		strings.ContainsFunc(values[0], func(c rune) bool { return !visible(c) }) {
		return "", &inference.Error{
			Code: inference.CodeInvalidRequest, Param: idempotencyHeader,
			Message: fmt.Sprintf("The header %s must be given once, with 1 to %d visible ASCII characters.", idempotencyHeader, store.MaxIdempotencyKeyBytes),
		}
	}
	return values[0], nil
}

// sameness returns the hash of all that makes a request the same: what it is sent to, what
// it says, and the headers that change what comes of it. How long the client waits does not.
func sameness(r *http.Request, content ...[]byte) (sum [32]byte) {
	h := sha256.New()
	for _, text := range []string{r.Method, r.URL.Path, r.URL.RawQuery} {
		hashPart(h, []byte(text))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		ours := strings.HasPrefix(name, "X-Sluice-") && name != "X-Sluice-Timeout" && name != "X-Sluice-Resume-Window"
		if ours || name == "Prefer" {
			hashPart(h, []byte(name))
			hashPart(h, []byte(strings.Join(r.Header[name], ",")))
		}
	}
	hashPart(h, nil) // no header has this name
	for _, part := range content {
		hashPart(h, part)
	}
	h.Sum(sum[:0])
	return sum
}

// hashPart adds a part with its length before it: two parts never look like two others.
func hashPart(h hash.Hash, part []byte) {
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part)))) // a hash takes everything
	_, _ = h.Write(part)
}

// heldBody is a body that has been read whole. Whoever needs it whole again takes it with
// the memory that is counted for it.
type heldBody struct {
	io.Reader
	body   []byte
	memory *share
}

// Close implements io.Closer. Nothing is left to close.
func (b *heldBody) Close() error { return nil }

// give hands the body over.
func (b *heldBody) give(to *share) []byte {
	body := b.body
	to.bytes += b.memory.bytes
	b.memory.bytes, b.body, b.Reader = 0, nil, http.NoBody
	return body
}

// followJob sends the streamed answer of a job that another call has begun, as far as it
// has come and as it comes. It reports whether there was anything to follow.
func (s *Ingress) followJob(w http.ResponseWriter, r *http.Request, tenant, jobID string) bool {
	w.Header().Set(replayedHeader, "true")
	if err := s.follow(w, r, jobID, tenant, eventID{}); err != nil {
		w.Header().Del(replayedHeader)
		return false
	}
	return true
}
