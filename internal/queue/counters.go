package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"sluice/internal/limits"
)

// countersBucket has the records of limits, one key for each scope.
const (
	countersBucket = "SLUICE_LIMITS"
	countersStream = "KV_" + countersBucket
	countersStart  = "$KV." + countersBucket + "."
)

// countersAge is after how long a record goes that nobody has touched: it says nothing
// any more, since no window is longer than a month.
const countersAge = 40 * 24 * time.Hour

// Counters keep the records of limits in a bucket that every NATS client can read. They
// write and read its layout themselves, because the library's Delete leaves a marker for
// ever, and because it reads from any replica: one that lags would have a process decide
// by what is long gone. They are safe for concurrent use.
type Counters struct {
	conn *Conn

	mu     sync.Mutex
	stream jetstream.Stream
}

var _ limits.Counters = (*Counters)(nil)

// NewCounters returns counters that create their bucket when they are first asked, and
// again when the server has lost it.
func (c *Conn) NewCounters() *Counters { return &Counters{conn: c} }

func (l Limits) counters() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              countersStream,
		Description:       "Counts of what keys, tenants and models have taken of their limits.",
		Subjects:          []string{countersStart + ">"},
		Storage:           jetstream.FileStorage,
		Replicas:          l.Replicas,
		Discard:           jetstream.DiscardNew,
		MaxMsgsPerSubject: 1,
		MaxAge:            countersAge,
		AllowRollup:       true,
		AllowDirect:       l.Replicas <= 1,
		Duplicates:        2 * time.Minute,
	}
}

// counterSubject is where the scope's record is. A scope's id may have any characters and
// names keys and tenants, so that a digest stands for it.
func counterSubject(scope string) string {
	sum := sha256.Sum256([]byte(scope))
	return countersStart + hex.EncodeToString(sum[:16])
}

// Load returns the scope's record and its revision, or limits.ErrNoRecord.
func (k *Counters) Load(ctx context.Context, scope string) ([]byte, uint64, error) {
	stream, err := k.ready(ctx)
	if err != nil {
		return nil, 0, err
	}
	m, err := stream.GetLastMsgForSubject(ctx, counterSubject(scope))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, 0, limits.ErrNoRecord
	}
	if err != nil {
		return nil, 0, k.fault("load counters", err)
	}
	return m.Data, m.Sequence, nil
}

// Swap replaces the scope's record if it has the revision. Nothing is published a second
// time: the first may have arrived.
func (k *Counters) Swap(ctx context.Context, scope string, data []byte, revision uint64) (uint64, error) {
	if _, err := k.ready(ctx); err != nil {
		return 0, err
	}
	ack, err := k.conn.js.Publish(ctx, counterSubject(scope), data,
		jetstream.WithExpectLastSequencePerSubject(revision), jetstream.WithExpectStream(countersStream), jetstream.WithRetryAttempts(0))
	if fault := (*jetstream.APIError)(nil); errors.As(err, &fault) && conflictCode(fault.ErrorCode) {
		return 0, limits.ErrConflict
	}
	if err != nil {
		return 0, k.fault("swap counters", err)
	}
	return ack.Sequence, nil
}

// Remove removes the scope's record if it has the revision. A revision is a message's
// place in the stream, which no other message ever has.
func (k *Counters) Remove(ctx context.Context, _ string, revision uint64) error {
	stream, err := k.ready(ctx)
	if err != nil {
		return err
	}
	err = stream.DeleteMsg(ctx, revision)
	if errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
		return limits.ErrConflict // whatever the reason is, it was not removed
	}
	if err != nil {
		return k.fault("remove counters", err)
	}
	return nil
}

// Time returns the server's time: what the one says that decides about changes of the
// bucket.
func (k *Counters) Time(ctx context.Context) (time.Time, error) {
	stream, err := k.ready(ctx)
	if err != nil {
		return time.Time{}, err
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return time.Time{}, k.fault("ask for the server's time", err)
	}
	if info.TimeStamp.IsZero() {
		return time.Time{}, errors.New("ask for the server's time: the server tells none")
	}
	return info.TimeStamp, nil
}

// ready returns the stream. It does not wait for a server that is gone: what would be
// sent once it is back would be of no use by then.
func (k *Counters) ready(ctx context.Context) (jetstream.Stream, error) {
	if !k.conn.Connected() {
		return nil, errors.New("counters: nats is not connected")
	}
	k.mu.Lock()
	stream := k.stream
	k.mu.Unlock()
	if stream != nil {
		return stream, nil
	}
	if _, err := k.conn.ensureStream(ctx, k.conn.limits.counters()); err != nil {
		return nil, err
	}
	stream, err := k.conn.js.Stream(ctx, countersStream)
	if err != nil {
		return nil, fmt.Errorf("look up stream %s: %w", countersStream, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stream = stream
	return stream, nil
}

// fault wraps an error. The next call creates the bucket if it is gone.
func (k *Counters) fault(doing string, err error) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		k.mu.Lock()
		k.stream = nil
		k.mu.Unlock()
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// JetStream's codes for an expectation that does not hold; see the server's errors.json.
const (
	codeWrongLastSequence         jetstream.ErrorCode = 10071
	codeWrongLastSequenceConstant jetstream.ErrorCode = 10164
)

func conflictCode(code jetstream.ErrorCode) bool {
	return code == codeWrongLastSequence || code == codeWrongLastSequenceConstant
}
