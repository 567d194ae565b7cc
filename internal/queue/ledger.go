package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"sluice/internal/inference"
)

// RecordsPerMessage bounds how many usage records one message carries.
const RecordsPerMessage = 256

// AppendRecords keeps usage records in the usage stream until they are in the
// database. It returns when the server has them. The same record may be appended
// twice: the database knows each job once.
func (c *Conn) AppendRecords(ctx context.Context, records []inference.Record) error {
	if _, err := c.js.Publish(ctx, usageSubject, encodeRecords(records)); err != nil {
		return fmt.Errorf("append %d usage records: %w", len(records), err)
	}
	return nil
}

// Bounds of one read of the usage stream.
const (
	ledgerBatch  = 512 // messages
	ledgerWait   = 5 * time.Second
	ledgerGather = 200 * time.Millisecond
)

// ConsumeRecords hands the usage stream's records to store, in bulk, until ctx ends.
// Records leave the stream only after store has returned nil; while it fails they
// wait and are tried again.
func (c *Conn) ConsumeRecords(ctx context.Context, store func(context.Context, []inference.Record) error) {
	for ctx.Err() == nil {
		if err := c.consumeRecords(ctx, store); err != nil && ctx.Err() == nil {
			c.log.Warn("usage records wait", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

func (c *Conn) consumeRecords(ctx context.Context, store func(context.Context, []inference.Record) error) error {
	lookup, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	cons, err := c.js.Consumer(lookup, usageStream, ledgerConsumer)
	if err != nil {
		return fmt.Errorf("look up consumer of %s: %w", usageStream, err)
	}
	for ctx.Err() == nil {
		if err := c.storeBatch(ctx, cons, store); err != nil {
			return err
		}
	}
	return nil
}

func (c *Conn) storeBatch(ctx context.Context, cons jetstream.Consumer, store func(context.Context, []inference.Record) error) error {
	// One message opens the batch; those that come shortly after join it.
	wait, cancel := context.WithTimeout(ctx, ledgerWait)
	first, err := cons.Next(jetstream.FetchContext(wait)) // a stop does not wait for it
	cancel()
	if errors.Is(err, nats.ErrTimeout) || errors.Is(err, jetstream.ErrNoMessages) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("fetch usage records: %w", err)
	}
	msgs := []jetstream.Msg{first}
	more, err := cons.Fetch(ledgerBatch-1, jetstream.FetchMaxWait(ledgerGather))
	if err != nil {
		return fmt.Errorf("fetch usage records: %w", err)
	}
	for m := range more.Messages() {
		msgs = append(msgs, m)
	}
	var records []inference.Record
	readable := msgs[:0]
	for _, m := range msgs {
		rs, err := decodeRecords(m.Data())
		if err != nil {
			c.log.Error("usage message buried", "error", err)
			c.buryRecords(ctx, m)
			continue
		}
		records = append(records, rs...)
		readable = append(readable, m)
	}
	if len(records) > 0 {
		if err := store(ctx, records); err != nil {
			for _, m := range readable {
				_ = m.NakWithDelay(time.Second) // unsaid, it comes again after AckWait
			}
			return fmt.Errorf("store %d usage records: %w", len(records), err)
		}
	}
	for _, m := range readable {
		if err := m.Ack(); err != nil {
			return fmt.Errorf("acknowledge usage records: %w", err)
		}
	}
	return nil
}

// buryRecords keeps what cannot be read among the dead letters.
func (c *Conn) buryRecords(ctx context.Context, m jetstream.Msg) {
	if _, err := c.js.Publish(ctx, deadSubject("usage"), m.Data()); err != nil {
		_ = m.NakWithDelay(time.Minute)
		return
	}
	_ = m.Term()
}
