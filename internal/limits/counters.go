package limits

import (
	"context"
	"errors"
	"time"
)

// Errors of Counters.
var (
	// ErrNoRecord says that a scope has no record.
	ErrNoRecord = errors.New("scope has no record")

	// ErrConflict says that the record is not any more what the caller has seen: nothing was
	// changed.
	ErrConflict = errors.New("record was changed by another")
)

// Counters keep one record for each scope. An error other than the two above leaves open
// whether a change was made, or will yet be.
type Counters interface {
	// Load returns the record as it is now, or ErrNoRecord.
	Load(ctx context.Context, scope string) (data []byte, revision uint64, err error)

	// Swap replaces the record that has the revision, zero for none at all, and returns the
	// new one's. Otherwise it returns ErrConflict.
	Swap(ctx context.Context, scope string, data []byte, revision uint64) (uint64, error)

	// Remove removes the record if it still has the revision. Otherwise it returns ErrConflict.
	Remove(ctx context.Context, scope string, revision uint64) error

	// Time returns what the clock that all processes go by said at some moment of the call.
	Time(ctx context.Context) (time.Time, error)
}
