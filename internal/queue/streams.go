package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"sluice/internal/inference"
)

// EnsureShared creates the streams that all providers share, or brings them to the
// configured limits.
func (c *Conn) EnsureShared(ctx context.Context) error {
	for _, cfg := range []jetstream.StreamConfig{c.limits.events(), c.limits.usage(), c.limits.dead()} {
		if _, err := c.ensureStream(ctx, cfg); err != nil {
			return err
		}
	}
	if _, err := c.js.CreateOrUpdateConsumer(ctx, usageStream, c.limits.ledger()); err != nil {
		return fmt.Errorf("ensure consumer of %s: %w", usageStream, err)
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

// EnsureConsumer creates the consumer through which the provider's workers share its
// queue, for as many jobs in hand as concurrency says. One that is there keeps its own
// bound: SetConcurrency alone changes it.
func (c *Conn) EnsureConsumer(ctx context.Context, provider string, concurrency int) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	there, err := c.js.Consumer(ctx, jobStream(provider), string(inference.LaneInteractive))
	if err == nil {
		concurrency = there.CachedInfo().Config.MaxAckPending
	}
	if err == nil || errors.Is(err, jetstream.ErrConsumerNotFound) {
		_, err = c.js.CreateOrUpdateConsumer(ctx, jobStream(provider), c.limits.interactive(provider, concurrency))
	}
	if err != nil {
		return fmt.Errorf("ensure consumer of %s: %w", jobStream(provider), err)
	}
	return nil
}

// Concurrency returns how many jobs all workers of the provider together may have in
// hand.
func (c *Conn) Concurrency(ctx context.Context, provider string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	there, err := c.js.Consumer(ctx, jobStream(provider), string(inference.LaneInteractive))
	if err != nil {
		return 0, fmt.Errorf("look up consumer of %s: %w", jobStream(provider), err)
	}
	return there.CachedInfo().Config.MaxAckPending, nil
}

// SetConcurrency bounds how many jobs all workers of the provider together may have in
// hand.
func (c *Conn) SetConcurrency(ctx context.Context, provider string, concurrency int) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	if _, err := c.js.UpdateConsumer(ctx, jobStream(provider), c.limits.interactive(provider, concurrency)); err != nil {
		return fmt.Errorf("bound consumer of %s: %w", jobStream(provider), err)
	}
	return nil
}

func (c *Conn) ensureStream(ctx context.Context, cfg jetstream.StreamConfig) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s, err := c.js.CreateOrUpdateStream(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("ensure stream %s: %w", cfg.Name, err)
	}
	return s.CachedInfo(), nil
}

// Depth is what stands in one provider's queue.
type Depth struct {
	Waiting int // not yet taken by a worker
	Running int // in a worker's hands
}

// Depth asks how many jobs the provider's queue holds. A queue without a consumer,
// as it is before its first worker, has everything waiting.
func (c *Conn) Depth(ctx context.Context, provider string) (Depth, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	cons, err := c.js.Consumer(ctx, jobStream(provider), c.limits.interactive(provider, 1).Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		s, err := c.js.Stream(ctx, jobStream(provider))
		if err != nil {
			return Depth{}, fmt.Errorf("look up %s: %w", jobStream(provider), err)
		}
		return Depth{Waiting: int(s.CachedInfo().State.Msgs)}, nil
	}
	if err != nil {
		return Depth{}, fmt.Errorf("look up consumer of %s: %w", jobStream(provider), err)
	}
	info := cons.CachedInfo()
	return Depth{Waiting: int(info.NumPending), Running: info.NumAckPending}, nil
}
