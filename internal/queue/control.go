package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ProviderState is what an operator wants of a provider.
type ProviderState string

// The states of a provider.
const (
	ProviderActive   ProviderState = "active"
	ProviderPaused   ProviderState = "paused"   // its workers take no jobs; its queue holds them
	ProviderDraining ProviderState = "draining" // it gets no new requests; its queue is worked off
)

// Control is an operator's last word on a provider.
type Control struct {
	State  ProviderState `json:"state"`
	Reason string        `json:"reason,omitempty"`
	Since  time.Time     `json:"since,omitzero"`
	Until  time.Time     `json:"until,omitzero"` // when it is active again by itself; zero: when an operator says so
}

// At returns the state at this time, by the clock of whoever asks. A provider that nobody
// has said anything of is active.
func (c Control) At(now time.Time) ProviderState {
	if c.State != ProviderPaused && c.State != ProviderDraining || !c.Until.IsZero() && !now.Before(c.Until) {
		return ProviderActive
	}
	return c.State
}

// Controls are the last words on all providers that there is one on.
type Controls map[string]Control

// controlValue bounds a word. The bucket as a whole is bounded by the providers that there
// are: a bound of its bytes would be reserved, and refused where the server has given away
// its last, and a worker that cannot ask for the words takes no jobs.
const controlValue = 4 << 10

// controls opens the bucket, and makes it if it is not there. It is kept in files: a pause
// outlives every process.
func (c *Conn) controls(ctx context.Context) (jetstream.KeyValue, error) {
	kv, err := c.js.KeyValue(ctx, controlBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = c.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: controlBucket, Description: "What operators want of providers.", History: 1, Storage: jetstream.FileStorage,
			Replicas: c.limits.Replicas, MaxValueSize: controlValue,
		})
		if errors.Is(err, jetstream.ErrBucketExists) { // another process was faster
			kv, err = c.js.KeyValue(ctx, controlBucket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", controlBucket, err)
	}
	return kv, nil
}

// SetControl keeps an operator's word on a provider. Everyone who follows hears of it.
func (c *Conn) SetControl(ctx context.Context, provider string, word Control) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	kv, err := c.controls(ctx)
	if err != nil {
		return err
	}
	value, err := json.Marshal(word)
	if err == nil {
		_, err = kv.Put(ctx, provider, value)
	}
	if err != nil {
		return fmt.Errorf("keep state of provider %s: %w", provider, err)
	}
	return nil
}

// Rhythm of following.
const (
	controlAsk   = 50 * time.Millisecond // whether there is a connection
	controlRetry = time.Second           // after the words could not be read
	controlCheck = 15 * time.Second      // whether a word was missed, or the bucket made anew
)

// FollowControls tells fn what operators want, at once and after every change, until ctx
// ends. While the server cannot be reached the last word stays. Calls come from one
// goroutine, and fn may keep the map.
func (c *Conn) FollowControls(ctx context.Context, fn func(Controls)) {
	told := false
	for ctx.Err() == nil {
		wait := controlAsk
		if c.Connected() {
			err := c.followOnce(ctx, fn)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				told = false
				continue // what is followed has to be read anew
			}
			if !told {
				told = true
				c.log.Warn("states of providers not followed; the last ones stay in force", "error", err)
			}
			wait = controlRetry
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// followOnce reads all words and follows what comes, until something was missed.
func (c *Conn) followOnce(ctx context.Context, fn func(Controls)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	kv, made, _, err := c.controlPlace(ctx)
	if err != nil {
		return err
	}
	watch, err := kv.WatchAll(ctx)
	if err != nil {
		return fmt.Errorf("watch bucket %s: %w", controlBucket, err)
	}
	defer func() { _ = watch.Stop() }() // the server forgets it either way
	all, whole, heard := make(Controls), false, uint64(0)
	check := time.NewTicker(controlCheck)
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-watch.Updates():
			if !ok {
				return errSilent
			}
			if e == nil {
				whole = true
			} else {
				heard = e.Revision()
				c.hearControl(all, e)
			}
			if whole {
				fn(maps.Clone(all))
			}
		case <-check.C:
			if _, remade, last, err := c.controlPlace(ctx); err != nil {
				continue // the last word stays
			} else if !remade.Equal(made) || last > heard {
				return nil
			}
		}
	}
}

func (c *Conn) hearControl(all Controls, e jetstream.KeyValueEntry) {
	var word Control
	switch {
	case e.Operation() != jetstream.KeyValuePut:
		delete(all, e.Key())
	case json.Unmarshal(e.Value(), &word) != nil:
		c.log.Warn("state of a provider dropped", "provider", e.Key(), "bytes", len(e.Value()))
	default:
		all[e.Key()] = word
	}
}

// controlPlace opens the bucket, and tells when it was made and how many words it has had.
func (c *Conn) controlPlace(ctx context.Context) (kv jetstream.KeyValue, made time.Time, last uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	if kv, err = c.controls(ctx); err != nil {
		return nil, time.Time{}, 0, err
	}
	s, err := c.js.Stream(ctx, "KV_"+controlBucket)
	if err != nil {
		return nil, time.Time{}, 0, fmt.Errorf("look up bucket %s: %w", controlBucket, err)
	}
	info := s.CachedInfo()
	return kv, info.Created, info.State.LastSeq, nil
}
