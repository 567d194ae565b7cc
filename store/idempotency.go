package store

import (
	"context"
	"fmt"
	"time"
)

// Limits of idempotency keys.
const (
	MaxIdempotencyKeyBytes = 255
	MaxAnswerHeaderBytes   = 16 << 10 // as JSON
	MaxAnswerBytes         = 8 << 20
)

// IdempotentRequest is a request that came with an idempotency key. A key belongs to a
// tenant: the same one of another tenant is another key.
type IdempotentRequest struct {
	Tenant string
	KeyID  string // the API key that it came with
	Key    string
	Hash   [32]byte // of all that makes it the same request
	Owner  string   // this very call, unlike any other
	JobID  string   // the job that the request becomes if the key is the caller's

	// Inherits says that the request becomes the job of an owner who was lost, in the place
	// of its own JobID, if the key passes to it from one. What is created under that one
	// id is created once, however many owners are lost.
	Inherits bool
}

// IdempotentOutcome is what became of a request with an idempotency key.
type IdempotentOutcome string

// The outcomes.
const (
	IdempotentNew      IdempotentOutcome = "new"       // the key is the caller's, who is to do the work
	IdempotentInFlight IdempotentOutcome = "in_flight" // another caller is at it
	IdempotentDone     IdempotentOutcome = "done"      // the answer is there
)

// IdempotentState is what BeginIdempotent found.
type IdempotentState struct {
	Outcome IdempotentOutcome

	// JobID is the job to attach to while another is at it. For a new request it is the
	// job of an owner who had the key before and was lost, if there was one; the key goes on
	// naming that job if the request inherits.
	JobID       string
	LeasedUntil time.Time
	Answer      IdempotentAnswer // when it is done
}

// IdempotentAnswer is the answer that every call with the key gets.
type IdempotentAnswer struct {
	Status int
	Header map[string]string
	Body   []byte
	JobID  string
}

// Idempotency is the part of the store that remembers which requests have been made
// already. Of calls that come together one alone finds a key new. Times are the callers'.
type Idempotency interface {
	// BeginIdempotent takes the tenant's key for a request. A key that is new, or is no
	// longer kept, is the caller's until now+lease, and is kept until now+keep at least. A
	// lease that ran out is taken over by the next caller with the same request, and a
	// repeated call of an owner finds the key still its own. Errors: ErrConflict for a key
	// that stands for another request; ErrInvalid.
	BeginIdempotent(
		ctx context.Context, request IdempotentRequest, now time.Time, lease, keep time.Duration,
	) (IdempotentState, error)

	// RenewIdempotent prolongs the lease of an owner who is still at it. Errors:
	// ErrNotFound when the key is not, or no longer, this owner's to finish.
	RenewIdempotent(ctx context.Context, tenant, key, owner string, until time.Time) error

	// FinishIdempotent stores the answer. Errors: ErrNotFound as for RenewIdempotent,
	// ErrInvalid.
	FinishIdempotent(ctx context.Context, tenant, key, owner string, answer IdempotentAnswer) error

	// DropIdempotent frees the key again: the request was refused before it was accepted.
	// Errors: ErrNotFound as for RenewIdempotent.
	DropIdempotent(ctx context.Context, tenant, key, owner string) error

	// PurgeIdempotent removes at most limit keys that are no longer kept, and at most
	// MaxPage, and returns how many those were.
	PurgeIdempotent(ctx context.Context, now time.Time, limit int) (removed int, err error)
}

// HeldKey is an idempotency key as the database has it.
type HeldKey struct {
	Hash        [32]byte
	Owner       string
	JobID       string
	LeasedUntil time.Time
	ExpiresAt   time.Time
	Done        bool
	Answer      IdempotentAnswer
}

// Meet says what becomes of a request that finds its key held. With IdempotentNew the
// key passes to the request.
func (h HeldKey) Meet(r IdempotentRequest, now time.Time) (IdempotentState, error) {
	leased := !h.Done && now.Before(h.LeasedUntil)
	switch {
	case !leased && !now.Before(h.ExpiresAt):
		return IdempotentState{Outcome: IdempotentNew}, nil
	case h.Hash != r.Hash:
		return IdempotentState{}, fmt.Errorf("idempotency key of another request: %w", ErrConflict)
	case h.Done:
		return IdempotentState{Outcome: IdempotentDone, JobID: h.Answer.JobID, Answer: h.Answer}, nil
	case h.Owner == r.Owner:
		state := IdempotentState{Outcome: IdempotentNew}
		if r.Inherits && h.JobID != r.JobID {
			state.JobID = h.JobID // it was inherited with the call before
		}
		return state, nil
	case leased:
		return IdempotentState{Outcome: IdempotentInFlight, JobID: h.JobID, LeasedUntil: h.LeasedUntil}, nil
	default:
		return IdempotentState{Outcome: IdempotentNew, JobID: h.JobID}, nil
	}
}

// Heir returns the request as it takes a key over that was found so.
func (r IdempotentRequest) Heir(found IdempotentState) IdempotentRequest {
	if r.Inherits && found.JobID != "" {
		r.JobID = found.JobID
	}
	return r
}

// Validate returns why the request cannot be remembered. Nothing is cut to fit: two keys
// must not become one.
func (r IdempotentRequest) Validate() error {
	switch {
	case !isName(r.Tenant):
		return fmt.Errorf("tenant of an idempotency key: %w", ErrInvalid)
	case !isName(r.Key) || len(r.Key) > MaxIdempotencyKeyBytes:
		return fmt.Errorf("idempotency key is empty, not text or longer than %d bytes: %w", MaxIdempotencyKeyBytes, ErrInvalid)
	case !isName(r.Owner) || CleanText(r.JobID) != r.JobID:
		return fmt.Errorf("owner or job of an idempotency key: %w", ErrInvalid)
	}
	return nil
}

// Validate returns why the answer cannot be remembered.
func (a IdempotentAnswer) Validate() error {
	switch {
	case len(a.Body) > MaxAnswerBytes:
		return fmt.Errorf("idempotent answer has more than %d bytes: %w", MaxAnswerBytes, ErrInvalid)
	case CleanText(a.JobID) != a.JobID:
		return fmt.Errorf("job of an idempotent answer: %w", ErrInvalid)
	}
	return nil
}
