package queue

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats.go"

	"sluice/internal/inference"
)

// A streamed answer is kept in blocks: the chunks of half a second, compressed, in
// one message of the event stream. Live chunks travel beside it as they come. That
// costs a streamed token a twentieth of the memory that a message of its own would
// take, and the server stores two messages a second instead of one a token.
const (
	blockInterval = 500 * time.Millisecond
	blockBytes    = 128 << 10
	blockTimeout  = 2 * time.Second // for the server to confirm one block
	blockTries    = 3
)

// Headers of a block.
const (
	hdrRun  = "Sluice-Run"  // "<epoch>-<delivery>"
	hdrEnd  = "Sluice-End"  // present in the last block
	hdrOpen = "Sluice-Open" // present in the message that stands before all blocks
)

// Recorder keeps one run's events for replay. A block is published when it is half a
// second old or large; one at a time, so that they are kept in order, and confirmed
// by the server, so that none is dropped unseen.
type Recorder struct {
	conn  *Conn
	jobID string
	run   Run
	who   string // tenant, which a reader must belong to

	mu      sync.Mutex
	pending []byte // encoded chunks, each behind its length
	first   uint64 // sequence number of the first pending chunk
	count   int
	timer   *time.Timer
	stopped bool

	publish sync.Mutex // held while a block is on its way
}

// NewRecorder returns a recorder of one run of the job that begins at sequence number
// next: 1, or where another recorder was lost.
func (c *Conn) NewRecorder(j *inference.Job, run Run, next uint64) *Recorder {
	return &Recorder{conn: c, jobID: j.ID, run: run, who: j.Tenant, first: next}
}

// Add keeps chunks, which follow those of the last call.
func (r *Recorder) Add(chunks [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := writer{b: r.pending}
	for _, c := range chunks {
		w.bytes(c)
	}
	r.pending = w.b
	r.count += len(chunks)
	wait := blockInterval
	if len(r.pending) >= blockBytes {
		wait = 0
	}
	if r.timer == nil {
		r.timer = time.AfterFunc(wait, r.flushSoon)
	} else if wait == 0 {
		r.timer.Reset(0)
	}
}

func (r *Recorder) flushSoon() {
	ctx, cancel := context.WithTimeout(context.Background(), blockTries*blockTimeout)
	defer cancel()
	if err := r.flush(ctx, nil); err != nil {
		r.conn.log.Warn("events not kept for replay", "job_id", r.jobID, "error", err)
	}
}

// Finish keeps what is left together with the end of the run. After it nothing is
// published any more.
func (r *Recorder) Finish(ctx context.Context, end *End) error {
	return r.flush(ctx, end)
}

// flush publishes what is pending, as one block unless it is too large for that.
func (r *Recorder) flush(ctx context.Context, end *End) error {
	r.publish.Lock()
	defer r.publish.Unlock()

	r.mu.Lock()
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	if r.stopped || end == nil && r.count == 0 {
		r.mu.Unlock()
		return nil
	}
	r.stopped = end != nil
	var msgs []*nats.Msg
	for rest := r.pending; ; {
		block, count := cutBlock(rest, r.count)
		rest = rest[len(block):]
		r.count -= count
		if len(rest) == 0 {
			msgs = append(msgs, r.message(block, count, end))
			break
		}
		msgs = append(msgs, r.message(block, count, nil))
	}
	r.pending = r.pending[:0]
	r.mu.Unlock()

	var errs []error
	for _, m := range msgs {
		errs = append(errs, r.keep(ctx, m))
	}
	return errors.Join(errs...)
}

// cutBlock returns the first of count encoded chunks, as many as fit in a block but
// at least one. A message has a largest size, and a single chunk is known to fit.
func cutBlock(pending []byte, count int) (block []byte, chunks int) {
	if len(pending) <= blockBytes {
		return pending, count
	}
	rest := reader{b: pending}
	for chunks < count {
		before := len(pending) - len(rest.b)
		rest.bytes()
		if chunks > 0 && len(pending)-len(rest.b) > blockBytes {
			return pending[:before], chunks
		}
		chunks++
	}
	return pending, count
}

// message frames the next block. The caller holds mu.
func (r *Recorder) message(chunks []byte, count int, end *End) *nats.Msg {
	w := newFrame(64 + len(chunks)/2)
	w.uint(r.first)
	w.int(count)
	w.bytes(s2.Encode(nil, chunks))
	m := nats.NewMsg(eventsSubject(r.jobID))
	m.Header[hdrRun] = []string{runString(r.run)}
	m.Header[hdrTenant] = []string{url.QueryEscape(r.who)}
	m.Header[hdrMsgID] = []string{r.jobID + "." + runString(r.run) + "." + strconv.FormatUint(r.first, 10) + "." + strconv.FormatBool(end != nil)}
	if end != nil {
		m.Header[hdrEnd] = []string{"1"}
		slim := *end
		slim.Body, slim.BodyRef = nil, ""
		w.bytes(slim.encode())
	}
	m.Data = w.b
	r.first += uint64(count)
	return m
}

func (r *Recorder) keep(ctx context.Context, m *nats.Msg) error {
	var last error
	for range blockTries {
		try, cancel := context.WithTimeout(ctx, blockTimeout)
		_, last = r.conn.js.PublishMsg(try, m)
		cancel()
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("keep block of job %s: %w", r.jobID, errors.Join(last, ctx.Err()))
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("keep block of job %s: %w", r.jobID, last)
}

func runString(r Run) string { return strconv.Itoa(r.Epoch) + "-" + strconv.Itoa(r.Delivery) }

func parseRun(s string) (Run, error) {
	var r Run
	if n, err := fmt.Sscanf(s, "%d-%d", &r.Epoch, &r.Delivery); err != nil || n != 2 || r.Epoch < 0 || r.Delivery < 0 {
		return Run{}, fmt.Errorf("run %q: malformed", s)
	}
	return r, nil
}

// decodeBlock reads a block that unfolds to most bytes at most.
func decodeBlock(jobID string, h nats.Header, data []byte, most int) (*Block, error) {
	run, err := parseRun(h.Get(hdrRun))
	if err != nil {
		return nil, err
	}
	r := openFrame(data)
	b := &Block{Run: run, FirstSeq: r.uint()}
	count, packed := r.int(), r.bytes()
	if h.Get(hdrEnd) != "" {
		if b.End, err = decodeEnd(jobID, r.bytes()); err != nil {
			return nil, err
		}
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	if n, err := s2.DecodedLen(packed); err != nil || n > most || count > n {
		return nil, errFrame
	}
	raw, err := s2.Decode(nil, packed)
	if err != nil {
		return nil, fmt.Errorf("unpack block: %w", err)
	}
	chunks := &reader{b: raw}
	b.Chunks = make([][]byte, 0, count)
	for range count {
		b.Chunks = append(b.Chunks, chunks.bytes())
	}
	return b, chunks.end()
}
