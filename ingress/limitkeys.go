package ingress

import (
	"context"
	"sync"
	"time"

	"sluice/internal/limits"
	"sluice/internal/token"
	"sluice/store"
)

// limitKeys knows the own limits of the database's keys by their ids: a stored job names
// its key so. It asks for what has changed, no more often than limitKeysFor, and only if
// there are such jobs.
type limitKeys struct {
	store interface {
		KeysChangedSince(ctx context.Context, since time.Time) ([]store.Key, time.Time, error)
	}

	mu    sync.Mutex
	at    time.Time // of the last question
	since time.Time // to ask with next
	byID  map[string]*limits.Limits
}

// lentLimits returns what a job keeps of its caller's limits: those that a token carried,
// which is not kept. A key is asked again when they are needed.
func lentLimits(adm *admission) *limits.Limits {
	if !token.IsCaller(adm.job.KeyID) {
		return nil
	}
	return adm.ownLimits
}

const limitKeysFor = 2 * time.Second

// of returns the key's own limits, or nil if it has none. The error says that nobody can
// tell.
func (k *limitKeys) of(ctx context.Context, static []store.Key, id string) (*limits.Limits, error) {
	for i := range static {
		if static[i].ID == id {
			return static[i].Limits, nil
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.at) > limitKeysFor {
		changed, next, err := k.store.KeysChangedSince(ctx, k.since)
		switch {
		case err == nil:
			k.at, k.since = time.Now(), next
		case k.at.IsZero():
			return nil, err
		} // else what is known is better than nothing
		for _, key := range changed {
			if key.Limits == nil {
				delete(k.byID, key.ID)
			} else {
				k.byID[key.ID] = key.Limits
			}
		}
	}
	return k.byID[id], nil
}
