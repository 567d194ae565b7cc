package store

import (
	"context"
	"fmt"
	"time"
)

// JobWatch is the part of the store that answers what is asked about jobs of their own time
// and again. It reads indexes alone, however large the jobs are.
type JobWatch interface {
	// EndedJobs returns those of the ids whose job has ended or is not there. Errors:
	// ErrInvalid for more than MaxPage ids.
	EndedJobs(ctx context.Context, ids []string) (ended []string, err error)

	// UnfinishedJobs returns how many unfinished jobs the tenant has, lines of batches not
	// among them, or most if there are more.
	UnfinishedJobs(ctx context.Context, tenant string, most int) (int, error)

	// OldestWaiting returns when the oldest unfinished job that has no message was created,
	// lines of batches not among them; the zero time if there is none.
	OldestWaiting(ctx context.Context) (time.Time, error)
}

// CheckWatched returns an ErrInvalid for more ids than one call takes.
func CheckWatched(ids []string) error {
	if len(ids) > MaxPage {
		return fmt.Errorf("%d ids of jobs in one call, more than %d: %w", len(ids), MaxPage, ErrInvalid)
	}
	return nil
}

// Without returns the ids that are not among the others.
func Without(ids, others []string) (rest []string) {
	left := make(map[string]bool, len(others))
	for _, id := range others {
		left[id] = true
	}
	for _, id := range ids {
		if !left[id] {
			rest = append(rest, id)
		}
	}
	return rest
}
