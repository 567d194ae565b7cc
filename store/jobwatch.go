package store

import (
	"context"
	"fmt"
	"time"
)

// JobWatch is the part of the store that answers what is asked about jobs of their own time
// and again. It reads indexes alone, however large the jobs are, where it does not say more.
type JobWatch interface {
	// EndedJobs returns those of the ids whose job has ended or is not there. Errors:
	// ErrInvalid for more than MaxPage ids.
	EndedJobs(ctx context.Context, ids []string) (ended []string, err error)

	// JobEpochs returns the epochs of those of the ids whose job is not finished. Errors:
	// ErrInvalid for more than MaxPage ids.
	JobEpochs(ctx context.Context, ids []string) (map[string]int, error)

	// JobsByID returns those of the ids whose job is there, without bodies. It reads their
	// rows. Errors: ErrInvalid for more than MaxPage ids.
	JobsByID(ctx context.Context, ids []string) ([]Job, error)

	// JobBody returns the body of a job, or of a line of a batch. Errors: ErrNotFound.
	JobBody(ctx context.Context, id string) ([]byte, error)

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

// JobEpoch is a job, and the epoch of the message that stands for it or will.
type JobEpoch struct {
	ID    string
	Epoch int
}

// ByID returns the epochs by the ids of their jobs.
func ByID(epochs []JobEpoch) map[string]int {
	of := make(map[string]int, len(epochs))
	for _, e := range epochs {
		of[e.ID] = e.Epoch
	}
	return of
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
