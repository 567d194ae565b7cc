package limits

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sluice/internal/inference"
)

// Scope is one holder of limits that a request counts for.
type Scope struct {
	ID     string // such as key:ID, tenant:NAME, model:NAME, key:ID/models:GLOBS; unique for what is counted together
	Limits Limits // its Models are not looked at: each of them is a Scope of its own

	// Before are the entries of its holder that come before its own: what they cover
	// does not count for it.
	Before []ModelLimits
}

// Demand is what a request asks for.
type Demand struct {
	Scopes []Scope
	Tokens int64          // estimated prompt plus the output that it may have
	Cost   inference.Cost // of those tokens
	Queued bool           // it will wait in a queue until Started is told

	// Ends is when the request is surely over, of one that goes on without this process. It
	// counts as concurrent until then if the process is gone, or until Ended is told. Zero:
	// it does not outlive the process, or others look after it.
	Ends time.Time
}

// Refusal says that a demand does not fit. It is an error.
type Refusal struct {
	Scope      string
	Limit      string        // the limit's name in JSON, such as requests_per_minute or budget.day
	Most       int64         // the limit itself, in its own unit
	Asked      int64         // what of it the request asked for
	RetryAfter time.Duration // when it may fit; zero: it never will, whatever passes
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s of %s is reached", r.Limit, r.Scope) }

// ErrUnavailable says that the counters cannot be reached.
var ErrUnavailable = errors.New("limit counters are out of reach")

// Standing is how a scope stands after a reservation, for the scope with the least left.
// Limits that no scope has are zero, and so are their other numbers.
type Standing struct {
	Requests Left
	Tokens   Left
}

// Left is what is left in a window.
type Left struct {
	Limit, Remaining int64
	Reset            time.Duration // until the window is as if nothing had been taken
}

// Reserver is what the ingress asks.
type Reserver interface {
	// Reserve takes what the demand asks for from all of its scopes, or nothing. Errors:
	// *Refusal, ErrUnavailable, ctx's.
	Reserve(ctx context.Context, d Demand) (Reservation, error)

	// Adopt takes what a request has in hand that another process, or an earlier one, had
	// reserved, which is gone: its place among the concurrent ones and its money. Nothing is
	// asked and nothing refused. What it counted by the minute still counts, so that Release
	// gives back none of that.
	Adopt(d Demand) Reservation

	// Charge adds what a request has taken that another process, or an earlier one, had
	// reserved: nothing is asked and nothing refused.
	Charge(d Demand)

	// Ended says that a request with an end has ended which an ingress had accepted that is
	// gone: it does not count as concurrent any more. Nothing changes if that ingress is
	// there. It is to be told once.
	Ended(ingress string, scopes []Scope)

	// Standing returns how the scopes stand, as far as this process knows without asking.
	Standing(scopes []Scope) Standing
}

// Reservation is what a request has in hand until it ends. Its methods do not wait for
// any server. All but the first Settle, Release or Abandon do nothing.
type Reservation interface {
	// Started says that a worker has begun the request: it is not queued any more.
	Started()

	// Settle ends the reservation with what was taken.
	Settle(tokens int64, cost inference.Cost)

	// Release ends the reservation of a request that took nothing: it gives back all of
	// it, the request's own count as well.
	Release()

	// Abandon ends the reservation of a request that goes on while this process stops: it
	// may take all that it has asked for. One that has an end counts as concurrent further on.
	Abandon()
}
