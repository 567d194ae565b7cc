package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"sluice/internal/inference"
)

// EnsureShared creates the streams that all providers share, or brings them to the
// configured limits.
func (c *Conn) EnsureShared(ctx context.Context) error {
	for _, cfg := range []jetstream.StreamConfig{c.limits.events(), c.limits.usage(), c.limits.dead(), c.limits.results()} {
		if _, err := c.ensureStream(ctx, cfg); err != nil {
			return err
		}
	}
	if _, err := c.js.CreateOrUpdateConsumer(ctx, usageStream, c.limits.ledger()); err != nil {
		return fmt.Errorf("ensure consumer of %s: %w", usageStream, err)
	}
	for _, lane := range storedLanes {
		if err := c.ensureResultsOf(ctx, lane); err != nil {
			return err
		}
	}
	return c.blobs.ensure(ctx)
}

// EnsureQueue creates the provider's job stream, or brings it to the configured
// bound. It returns when the stream was made: a later time than before means that
// the server lost the stream and all jobs in it.
func (c *Conn) EnsureQueue(ctx context.Context, provider string, maxQueued int) (time.Time, error) {
	info, err := c.ensureStream(ctx, c.limits.jobs(provider, maxQueued))
	if err != nil {
		return time.Time{}, err
	}
	return info.Created, nil
}

// storedLanes are the lanes whose jobs the database owns.
var storedLanes = [...]inference.Lane{inference.LaneBackground, inference.LaneBatch}

// EnsureStored creates the provider's stream for stored jobs, or brings it to the
// configured bound. It returns when the stream was made, as EnsureQueue does.
func (c *Conn) EnsureStored(ctx context.Context, provider string) (created time.Time, err error) {
	info, err := c.ensureStream(ctx, c.limits.stored(provider))
	if err != nil {
		return time.Time{}, err
	}
	return info.Created, nil
}

// ensureResultsOf creates the consumer through which the ingresses share the lane's
// results.
func (c *Conn) ensureResultsOf(ctx context.Context, lane inference.Lane) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	if _, err := c.js.CreateOrUpdateConsumer(ctx, resultsStream, c.limits.resultsOf(lane)); err != nil {
		return fmt.Errorf("ensure consumer %s of %s: %w", lane, resultsStream, err)
	}
	return nil
}

// EnsureConsumer is EnsureLane for the interactive lane.
func (c *Conn) EnsureConsumer(ctx context.Context, provider string, concurrency int) error {
	return c.EnsureLane(ctx, provider, inference.LaneInteractive, concurrency)
}

// EnsureLane creates the consumer through which the provider's workers share a lane of
// its queue, for as many jobs in hand as concurrency says. One that is there keeps its
// own bound: SetLaneConcurrency alone changes it.
func (c *Conn) EnsureLane(ctx context.Context, provider string, lane inference.Lane, concurrency int) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	stream := laneStream(provider, lane)
	there, err := c.js.Consumer(ctx, stream, string(lane))
	if err == nil {
		concurrency = there.CachedInfo().Config.MaxAckPending
	}
	if err == nil || errors.Is(err, jetstream.ErrConsumerNotFound) {
		_, err = c.js.CreateOrUpdateConsumer(ctx, stream, c.limits.lane(provider, lane, concurrency))
	}
	if err != nil {
		return fmt.Errorf("ensure consumer %s of %s: %w", lane, stream, err)
	}
	return nil
}

// Concurrency returns how many interactive jobs all workers of the provider together may
// have in hand.
func (c *Conn) Concurrency(ctx context.Context, provider string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	there, err := c.js.Consumer(ctx, jobStream(provider), string(inference.LaneInteractive))
	if err != nil {
		return 0, fmt.Errorf("look up consumer of %s: %w", jobStream(provider), err)
	}
	return there.CachedInfo().Config.MaxAckPending, nil
}

// SetConcurrency is SetLaneConcurrency for the interactive lane.
func (c *Conn) SetConcurrency(ctx context.Context, provider string, concurrency int) error {
	return c.SetLaneConcurrency(ctx, provider, inference.LaneInteractive, concurrency)
}

// SetLaneConcurrency bounds how many of the lane's jobs all workers of the provider
// together may have in hand.
func (c *Conn) SetLaneConcurrency(ctx context.Context, provider string, lane inference.Lane, concurrency int) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	stream := laneStream(provider, lane)
	if _, err := c.js.UpdateConsumer(ctx, stream, c.limits.lane(provider, lane, concurrency)); err != nil {
		return fmt.Errorf("bound consumer %s of %s: %w", lane, stream, err)
	}
	return nil
}

// ensureStream creates the stream, or brings one that is there to the configuration. One
// that has it is left alone: all processes ask for that again and again, and an update
// holds up what goes on in the stream.
func (c *Conn) ensureStream(ctx context.Context, cfg jetstream.StreamConfig) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	there, err := c.js.Stream(ctx, cfg.Name)
	if err == nil && configured(there.CachedInfo().Config, cfg) {
		return there.CachedInfo(), nil
	}
	var s jetstream.Stream
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s, err = c.js.CreateStream(ctx, cfg) // another process may have been faster, and wants the same
	}
	if err != nil || s == nil {
		s, err = c.js.CreateOrUpdateStream(ctx, cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("ensure stream %s: %w", cfg.Name, err)
	}
	return s.CachedInfo(), nil
}

// configured reports whether a stream has what is asked for, as far as we ask for anything.
func configured(has, want jetstream.StreamConfig) bool {
	bound := func(n int64) int64 {
		if n == 0 {
			return -1 // as the server says that there is none
		}
		return n
	}
	return has.Description == want.Description && slices.Equal(has.Subjects, want.Subjects) && has.Retention == want.Retention &&
		has.Storage == want.Storage && has.Replicas == max(want.Replicas, 1) && has.Discard == want.Discard &&
		has.MaxMsgs == bound(want.MaxMsgs) && has.MaxBytes == bound(want.MaxBytes) && has.MaxAge == want.MaxAge &&
		has.AllowDirect == want.AllowDirect && (has.Duplicates == want.Duplicates || want.Duplicates == 0)
}

// ensureBucket is ensureStream for an object store.
func ensureBucket(ctx context.Context, js jetstream.JetStream, cfg jetstream.ObjectStoreConfig) (jetstream.ObjectStore, error) {
	there, err := js.Stream(ctx, bucketStream(cfg.Bucket))
	if err == nil {
		has, want := there.CachedInfo().Config, there.CachedInfo().Config
		want.Description, want.Storage, want.Replicas = cfg.Description, cfg.Storage, cfg.Replicas
		want.MaxBytes, want.MaxAge = cfg.MaxBytes, cfg.TTL
		if configured(has, want) {
			return js.ObjectStore(ctx, cfg.Bucket)
		}
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if made, err := js.CreateObjectStore(ctx, cfg); err == nil {
			return made, nil // another process may have been faster, and wants the same
		}
	}
	return js.CreateOrUpdateObjectStore(ctx, cfg)
}

// Depth is what stands in the interactive lane of one provider's queue.
type Depth struct {
	Waiting int // not yet taken by a worker
	Running int // in a worker's hands
}

// Depth asks how many interactive jobs the provider's queue holds. A queue without a consumer,
// as it is before its first worker, has everything waiting.
func (c *Conn) Depth(ctx context.Context, provider string) (Depth, error) {
	return c.LaneDepth(ctx, provider, inference.LaneInteractive)
}

// LaneDepth is Depth for any lane.
func (c *Conn) LaneDepth(ctx context.Context, provider string, lane inference.Lane) (Depth, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	stream := laneStream(provider, lane)
	cons, err := c.js.Consumer(ctx, stream, string(lane))
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		s, err := c.js.Stream(ctx, stream)
		if err != nil {
			return Depth{}, fmt.Errorf("look up %s: %w", stream, err)
		}
		return Depth{Waiting: int(s.CachedInfo().State.Msgs)}, nil
	}
	if err != nil {
		return Depth{}, fmt.Errorf("look up consumer of %s: %w", stream, err)
	}
	info := cons.CachedInfo()
	return Depth{Waiting: int(info.NumPending), Running: info.NumAckPending}, nil
}
