package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"sluice/internal/inference"
)

// Bounds of one handing over of results.
const (
	maxResults   = 512      // at most; what an ingress holds of a lane at once
	resultsBytes = 16 << 20 // of bodies, unless a single one is larger
)

// A handing over that failed is repeated after resultPause, and later each time. From
// resultAlone on the result is handed over alone, so that one that is never taken keeps no
// other from being stored.
const (
	resultPause    = time.Second
	resultPauseMax = 15 * time.Second
	resultAlone    = 5
)

// Result keeps the result until an ingress has stored it, and returns when the server has
// it. A body that is too large for a message becomes a blob first. The error wraps ErrFull
// or ErrNoQueue when the server does not take it; the same call may be made again after
// any error: the server drops a second copy.
func (a *Answerer) Result(ctx context.Context, r *Result) error {
	if !r.valid() {
		return fmt.Errorf("keep result of job %q: it says nothing, or too much", r.JobID())
	}
	m := nats.NewMsg(resultSubject(r.Lane))
	what := "end"
	var run Run
	if r.End != nil {
		if err := a.StoreAnswer(ctx, r.End); err != nil {
			return fmt.Errorf("keep result of job %s: %w", r.JobID(), err)
		}
		run = r.End.Run
	} else {
		what, run = "passed", r.Passed.Run
	}
	m.Header[hdrMsgID] = []string{r.JobID() + "." + runString(run) + "." + what}
	m.Data = r.encode()
	if _, err := a.conn.publishAcked(ctx, m); err != nil {
		return fmt.Errorf("keep result of job %s: %w", r.JobID(), err)
	}
	return nil
}

// ConsumeResults hands the lane's results to handle until ctx ends, at most so many at
// once and with at most 16 MiB of bodies, unless a single one is larger. Every ingress
// does; each result goes to one of them. Bodies that are blobs count as if they were
// there, but handle has to fetch them. Results are forgotten when handle has returned nil;
// after an error all of them come again, so the same one may be handed over several times.
// What cannot be read is kept among the dead letters.
func (c *Conn) ConsumeResults(ctx context.Context, lane inference.Lane, most int, handle func(ctx context.Context, results []*Result) error) {
	r := &resultReader{
		conn: c, lane: lane, most: min(max(most, 1), maxResults), handle: handle,
		came: make(chan struct{}, 1), gone: make(chan struct{}, 1),
	}
	for ctx.Err() == nil {
		if err := r.run(ctx); err != nil {
			c.log.Warn("results wait", "lane", lane, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(resultPause):
			}
		}
	}
}

// resultReader is the reading end of one lane's results.
type resultReader struct {
	conn   *Conn
	lane   inference.Lane
	most   int
	handle func(context.Context, []*Result) error

	puller     *Puller
	tick       *time.Ticker
	quiet      time.Duration // about a message in hand, before a word on it is due
	reconnects uint64
	came, gone chan struct{} // signals: there is something to hand over; there is no consumer

	mu      sync.Mutex
	waiting []*arrival // taken and not yet handed over
}

// arrival is one message of the results.
type arrival struct {
	*Delivery
	said   time.Time // when it came, or was last said to be worked on
	result *Result
	err    error // why it cannot be read
}

// alone reports whether the result was refused so often that it may be the one at fault.
func (a *arrival) alone() bool { return a.Delivery.Delivery >= resultAlone }

// run takes results until ctx ends.
func (r *resultReader) run(ctx context.Context) error {
	r.quiet = cmp.Or(r.conn.limits.AckWait, 30*time.Second) / 3
	r.tick = time.NewTicker(min(time.Second, r.quiet/2))
	defer r.tick.Stop()
	r.reconnects = r.conn.nc.Stats().Reconnects
	var err error
	r.puller, err = r.conn.pull(resultsStream, string(r.lane), r.most, r.take, func() { signal(r.gone) })
	if err != nil {
		return err
	}
	var asking sync.WaitGroup
	asking.Go(func() { r.puller.Run(ctx) })
	r.loop(ctx)
	r.puller.Stop()
	asking.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.waiting {
		a.Nak(0)
	}
	return nil
}

func (r *resultReader) loop(ctx context.Context) {
	var pause <-chan time.Time // set while nothing is handed over
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.tick.C:
			r.beat(nil)
		case <-r.gone:
			r.ensure(ctx)
		case <-pause:
			pause = nil
			signal(r.came)
		case <-r.came:
			if pause != nil {
				continue
			}
			batch := r.next(ctx)
			if len(batch) == 0 {
				continue
			}
			if !r.deliver(ctx, batch) {
				pause = time.After(resultPause)
			}
			signal(r.came) // until next finds nothing
		}
	}
}

func (r *resultReader) take(d *Delivery) {
	a := &arrival{Delivery: d, said: time.Now()}
	a.result, a.err = decodeResult(r.lane, d.msg.Data)
	r.mu.Lock()
	r.waiting = append(r.waiting, a)
	r.mu.Unlock()
	signal(r.came)
}

// next returns what is handed over next, in the order in which it came.
func (r *resultReader) next(ctx context.Context) []*arrival {
	var batch []*arrival
	size := 0
	for len(batch) < r.most {
		a := r.pop(func(a *arrival) bool {
			return len(batch) == 0 || a.err != nil || !a.alone() && size+a.result.bytes(resultsBytes) <= resultsBytes
		})
		if a == nil {
			break
		}
		if a.err != nil {
			r.bury(ctx, a)
			continue
		}
		batch = append(batch, a)
		size += a.result.bytes(resultsBytes)
		if a.alone() {
			break
		}
	}
	return batch
}

// pop returns the first that waits, if there is one and it fits.
func (r *resultReader) pop(fits func(*arrival) bool) *arrival {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) == 0 || !fits(r.waiting[0]) {
		return nil
	}
	a := r.waiting[0]
	r.waiting[0], r.waiting = nil, r.waiting[1:]
	return a
}

// bury keeps what cannot be read among the dead letters.
func (r *resultReader) bury(ctx context.Context, a *arrival) {
	r.conn.log.Error("result buried", "lane", r.lane, "error", a.err)
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	if err := a.Bury(ctx, "results", a.err.Error()); err != nil {
		r.conn.log.Warn("dead letter not kept; the result stays", "error", err)
	}
	r.puller.Free()
}

// deliver hands the results over and settles their messages. It reports whether they were
// taken.
func (r *resultReader) deliver(ctx context.Context, batch []*arrival) bool {
	results := make([]*Result, len(batch))
	for i, a := range batch {
		results[i] = a.result
	}
	done := make(chan error, 1)
	go func() { done <- r.handle(ctx, results) }()
	err := r.wait(done, batch)
	for _, a := range batch {
		switch {
		case err == nil:
			a.Ack()
		case ctx.Err() != nil:
			a.Nak(0) // for another ingress
		default:
			a.Nak(min(resultPause<<min(a.Delivery.Delivery-1, 10), resultPauseMax))
		}
		r.puller.Free()
	}
	if err != nil && ctx.Err() == nil {
		r.conn.log.Warn("results wait", "lane", r.lane, "results", len(batch), "error", err)
	}
	return err == nil
}

// wait waits for the handler, however long it takes: meanwhile no other ingress gets what
// is in hand here.
func (r *resultReader) wait(done <-chan error, batch []*arrival) error {
	for {
		select {
		case err := <-done:
			return err
		case <-r.tick.C:
			r.beat(batch)
		}
	}
}

// beat says of everything in hand that it is worked on, where that is due. After a
// reconnect it asks for results anew: the server has forgotten that it was asked.
func (r *resultReader) beat(batch []*arrival) {
	r.mu.Lock()
	for _, list := range [...][]*arrival{batch, r.waiting} {
		for _, a := range list {
			if time.Since(a.said) >= r.quiet {
				a.said = time.Now()
				a.Progress()
			}
		}
	}
	r.mu.Unlock()
	if n := r.conn.nc.Stats().Reconnects; n != r.reconnects {
		r.reconnects = n
		r.puller.Reset()
	}
}

// ensure makes what there is no more to take results from.
func (r *resultReader) ensure(ctx context.Context) {
	_, err := r.conn.ensureStream(ctx, r.conn.limits.results())
	if err == nil {
		err = r.conn.ensureResultsOf(ctx, r.lane)
	}
	if err != nil {
		if ctx.Err() == nil {
			r.conn.log.Warn("results wait", "lane", r.lane, "error", err)
		}
		return // the puller asks again in a second, and is told again
	}
	r.puller.Reset()
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// OldestResult returns when the oldest result was published that nobody has taken yet, by
// the server's clock, and the zero time when there is none.
func (c *Conn) OldestResult(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s, err := c.js.Stream(ctx, resultsStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("look up %s: %w", resultsStream, err)
	}
	state := s.CachedInfo().State
	if state.Msgs == 0 {
		return time.Time{}, nil
	}
	return state.FirstTime, nil
}
