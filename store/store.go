// Package store says what Sluice remembers: API keys, tenants, who changed what, the usage
// ledger, files, background jobs, batches, idempotency keys, webhooks and their deliveries. It holds the types, the
// errors and the rules that every database obeys; the subpackages postgres and sqlite keep
// them, and storetest holds both to one behaviour.
//
// It opens no database and never sees a secret: a key is known by its hash. Only
// ingresses use it; a worker has no database.
package store

import (
	"context"
	"errors"
	"time"

	"sluice/internal/inference"
)

// The errors that callers match. Any other error means that the database could
// not do its work, and the same call may succeed later.
var (
	// ErrNotFound says that no such key, or whatever is asked for, is stored.
	ErrNotFound = errors.New("not found")

	// ErrNameTaken says that a key which is not revoked has the name already.
	ErrNameTaken = errors.New("name already taken by a key in force")

	// ErrDuplicate says that a key with the same id or the same secret, or a file,
	// job or batch with the same id, is stored.
	ErrDuplicate = errors.New("id or secret already stored")

	// ErrConflict says that what is stored has moved on, or stands for something else.
	ErrConflict = errors.New("conflict")

	// ErrInvalid says that a key, a record, a file, a job or a batch can never be stored as it
	// is: trying again is of no use.
	ErrInvalid = errors.New("invalid")
)

// Limits of one call.
const (
	MaxBatch     = 1000 // records in one AppendUsage
	MaxPage      = 1000 // records that one Usage returns
	DefaultPage  = 100  // records when a filter names no limit
	MaxModels    = 1000 // globs in a key
	MaxTextBytes = 512  // any one text; longer texts of a record are cut
)

// Ledger is the part of the store that remembers what each request cost.
type Ledger interface {
	// AppendUsage stores records, each job's once: a record whose job is in the ledger
	// or earlier in the batch is left out. It returns how many were new. Either the
	// whole batch is stored durably or nothing of it, and the call may be repeated.
	// Texts are made storable as Clean says. What the new records cost is added to the
	// sums that Reports.SpentSince reads, together with them. Errors: ErrInvalid for more
	// than MaxBatch records and for a record without a job id.
	AppendUsage(ctx context.Context, records []inference.Record) (inserted int, err error)

	// Usage returns the records that the filter selects, newest first; times are UTC
	// in microseconds.
	Usage(ctx context.Context, filter UsageFilter) ([]inference.Record, error)
}

// Store is a database with everything that Sluice remembers. Its methods are safe
// for concurrent use, and end within a bounded time also when the database does
// not answer.
type Store interface {
	Keys
	Tenants
	Audit
	Ledger
	Reports
	Files
	Jobs
	JobWatch
	JobHolds
	Batches
	Idempotency
	Cache
	Webhooks
	Deliveries

	// VoidLeases ends the leases that anybody has on batches, and on jobs that are about to
	// get a message. It is for a process that has the database to itself and has just begun:
	// whoever has those leases is not there any more. A job that may have been published
	// comes up under an epoch of the next family, as after a lease that ran out.
	VoidLeases(ctx context.Context, now time.Time) error

	// Ping says whether the database answers.
	Ping(ctx context.Context) error

	// Migrate brings the schema up to date. Processes that start together do not
	// get into each other's way.
	Migrate(ctx context.Context) error

	// Pending reports whether the schema lacks migrations that this build needs. It
	// changes nothing in the database.
	Pending(ctx context.Context) (bool, error)

	// Close lets go of the database. No other call may follow.
	Close() error
}
