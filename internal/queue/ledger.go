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

// ErrNeverTaken says that among some usage records is one that can never be stored as it
// is, however often it is tried.
var ErrNeverTaken = errors.New("usage records will never be taken")

// Bounds of one read of the usage stream.
const (
	ledgerBatch  = 512 // messages
	ledgerWait   = 5 * time.Second
	ledgerGather = 200 * time.Millisecond
)

// ConsumeRecords hands the usage stream's records to store, in bulk, until ctx ends.
// Records leave the stream only after store has returned nil; while it fails they
// wait and are tried again. Where its error wraps ErrNeverTaken, the batch is tried in
// parts: the records at fault are kept among the dead letters and the others are
// stored.
func (c *Conn) ConsumeRecords(ctx context.Context, store func(context.Context, []inference.Record) error) {
	l := ledger{conn: c, store: store}
	for ctx.Err() == nil {
		if err := l.consume(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("usage records wait", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

// ledger is the reading end of the usage stream.
type ledger struct {
	conn  *Conn
	store func(context.Context, []inference.Record) error
}

func (l *ledger) consume(ctx context.Context) error {
	lookup, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	cons, err := l.conn.js.Consumer(lookup, usageStream, ledgerConsumer)
	if err != nil {
		return fmt.Errorf("look up consumer of %s: %w", usageStream, err)
	}
	for ctx.Err() == nil {
		msgs, err := fetchRecords(ctx, cons)
		if err != nil {
			return err
		}
		if err := l.settle(ctx, msgs); err != nil {
			return err
		}
	}
	return nil
}

// fetchRecords returns the next messages of the stream; none, if there is none for a
// while.
func fetchRecords(ctx context.Context, cons jetstream.Consumer) ([]jetstream.Msg, error) {
	// One message opens the batch; those that come shortly after join it.
	wait, cancel := context.WithTimeout(ctx, ledgerWait)
	first, err := cons.Next(jetstream.FetchContext(wait)) // a stop does not wait for it
	cancel()
	if errors.Is(err, nats.ErrTimeout) || errors.Is(err, jetstream.ErrNoMessages) || errors.Is(err, context.DeadlineExceeded) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("fetch usage records: %w", err)
	}
	msgs := []jetstream.Msg{first}
	more, err := cons.Fetch(ledgerBatch-1, jetstream.FetchMaxWait(ledgerGather))
	if err != nil {
		return nil, fmt.Errorf("fetch usage records: %w", err)
	}
	for m := range more.Messages() {
		msgs = append(msgs, m)
	}
	return msgs, nil
}

// parcel is one message and how many of the batch's records came in it.
type parcel struct {
	msg     jetstream.Msg
	records int
}

// settle stores what the messages hold and takes them off the stream.
func (l *ledger) settle(ctx context.Context, msgs []jetstream.Msg) error {
	var records []inference.Record
	var parcels []parcel
	for _, m := range msgs {
		rs, err := decodeRecords(m.Data())
		if err != nil {
			l.buryMessage(ctx, m, err)
			continue
		}
		records = append(records, rs...)
		parcels = append(parcels, parcel{m, len(rs)})
	}
	refused := make(map[int]error)
	if err := l.take(ctx, records, 0, refused); err != nil {
		for _, p := range parcels {
			_ = p.msg.NakWithDelay(time.Second) // unsaid, it comes again after AckWait
		}
		return fmt.Errorf("store %d usage records: %w", len(records), err)
	}
	at := 0
	for _, p := range parcels {
		if !l.buryRefused(ctx, records[at:at+p.records], at, refused) {
			_ = p.msg.NakWithDelay(time.Minute) // what is stored already is known when it comes again
		} else if err := p.msg.Ack(); err != nil {
			return fmt.Errorf("acknowledge usage records: %w", err)
		}
		at += p.records
	}
	return nil
}

// take stores records, the first of which has the place at in the batch. Where some
// will never be taken it tries one half and then the other, until these stand alone,
// and notes them in refused by their place.
func (l *ledger) take(ctx context.Context, records []inference.Record, at int, refused map[int]error) error {
	if len(records) == 0 {
		return nil
	}
	err := l.storeNamed(ctx, records)
	if !errors.Is(err, ErrNeverTaken) {
		return err
	}
	if len(records) == 1 {
		refused[at] = err
		return nil
	}
	half := len(records) / 2
	if err := l.take(ctx, records[:half], at, refused); err != nil {
		return err
	}
	return l.take(ctx, records[half:], at+half, refused)
}

// storeNamed stores records that all say whose they are: no database can tell one
// without a job from another.
func (l *ledger) storeNamed(ctx context.Context, records []inference.Record) error {
	for i := range records {
		if records[i].JobID == "" {
			return fmt.Errorf("record without a job id: %w", ErrNeverTaken)
		}
	}
	return l.store(ctx, records)
}

// buryRefused keeps those of a message's records that were refused among the dead
// letters. It reports whether all of them are.
func (l *ledger) buryRefused(ctx context.Context, records []inference.Record, at int, refused map[int]error) bool {
	kept := true
	for i := range records {
		err, bad := refused[at+i]
		if !bad {
			continue
		}
		r := &records[i]
		l.conn.log.Error("usage record buried", "job_id", r.JobID, "request_id", r.RequestID, "error", err)
		kept = l.bury(ctx, encodeRecords(records[i:i+1]), err) && kept
	}
	return kept
}

// buryMessage keeps what cannot be read among the dead letters.
func (l *ledger) buryMessage(ctx context.Context, m jetstream.Msg, reason error) {
	l.conn.log.Error("usage message buried", "error", reason)
	if !l.bury(ctx, m.Data(), reason) {
		_ = m.NakWithDelay(time.Minute)
		return
	}
	_ = m.Term()
}

func (l *ledger) bury(ctx context.Context, data []byte, reason error) bool {
	m := nats.NewMsg(deadSubject("usage"))
	m.Header.Set(hdrReason, reason.Error())
	m.Header.Set(hdrSubject, usageSubject)
	m.Data = data
	_, err := l.conn.js.PublishMsg(ctx, m)
	if err != nil {
		l.conn.log.Warn("dead letter not kept; what it holds stays in the usage stream", "error", err)
	}
	return err == nil
}
