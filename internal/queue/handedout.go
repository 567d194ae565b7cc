package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"sluice/internal/inference"
)

// HandedOut reports whether a worker may have been given the message that has, or had, this
// place in the provider's queue of interactive jobs, which the server confirmed then. No is
// certain if the message is out of the queue: places are handed out in their order, so that
// a lower one than this was the last. Yes may only mean that a later one was handed out
// since, or that the queue was lost and made anew.
func (d *Dispatcher) HandedOut(ctx context.Context, provider string, seq uint64, confirmed time.Time) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	stream, lane := jobStream(provider), string(inference.LaneInteractive)
	consumer, err := d.conn.js.Consumer(ctx, stream, lane)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound): // before the provider's first worker
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return true, nil
	case err != nil:
		return true, fmt.Errorf("look up consumer %s of %s: %w", lane, stream, err)
	default:
		info := consumer.CachedInfo()
		if info.Delivered.Stream >= seq {
			return true, nil
		}
		if madeBefore(confirmed, info.Created, info.TimeStamp) {
			return false, nil // and so was its stream
		}
	}
	s, err := d.conn.js.Stream(ctx, stream)
	if err != nil {
		return true, fmt.Errorf("look up %s: %w", stream, err)
	}
	info := s.CachedInfo()
	return !madeBefore(confirmed, info.Created, info.TimeStamp), nil // what was made later is another stream
}

// madeBefore reports whether something surely was made before a moment of this machine's
// clock, given when it was made and what the time was a moment ago, by the server's.
func madeBefore(moment, made, answered time.Time) bool {
	return madeBy(time.Now(), made, answered).Before(moment)
}

// madeBy returns by when something was made, by this machine's clock: by how long that had
// been when the server answered, by its own.
func madeBy(now, made, answered time.Time) time.Time { return now.Add(-answered.Sub(made)) }
