package ingress

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// A job may run without a word of it: a line of a batch is not asked about while it is new,
// and any job runs if nobody answers for it. So a message that a worker was given, and of
// whose run no worker tells, counts as begun; so does one of which this cannot be told.

// untold is what is known of such a run.
func untold(at time.Time) *inference.Record {
	return &inference.Record{Attempts: 1, Outcome: inference.OutcomeCancelled, ErrorCode: inference.CodeWorkerLost, CreatedAt: at}
}

// unheard reports whether a job has ended without a worker's word.
func unheard(j *store.Job) bool {
	return j.Status == store.JobCancelled || j.Status == store.JobExpired && j.ProviderServed == ""
}

// lane is one of a provider's that the database owns.
type lane struct {
	provider string
	name     inference.Lane
}

// given is how far a lane's messages have been handed out.
type given struct {
	upTo uint64
	made time.Time // the stream, by this machine's clock; it knows nothing of messages from before
	err  error
}

// untouched reports whether surely no worker was given the message at this place, which was
// there at that time and is not any more.
func (g given) untouched(seq uint64, at time.Time) bool {
	return g.err == nil && seq > g.upTo && !at.Before(g.made)
}

// givens asks how far lanes have been handed out, each once.
type givens struct {
	conn *queue.Conn
	of   map[lane]given
}

func (l *jobLimits) givens() givens { return givens{l.conn, make(map[lane]given)} }

func (g givens) in(ctx context.Context, at lane) given {
	known, asked := g.of[at]
	if !asked {
		known.upTo, known.made, known.err = g.conn.StoredGiven(ctx, at.provider, at.name)
		g.of[at] = known
	}
	return known
}

// cut is what a job has in hand that has ended without a worker's word.
type cut struct {
	jobHold
	id string
}

// cutShort ends what jobs have in hand here that have ended without a worker's word. It
// makes sure first that no worker gets their messages any more. What it cannot ask about
// stays in hand until the next sweep; a queue that is not there is an answer like any other.
func (l *jobLimits) cutShort(ctx context.Context, jobs []store.Job) error {
	if l == nil {
		return nil
	}
	cuts := make(map[lane][]cut)
	places := make(map[lane][]queue.StoredPlace)
	for i := range jobs {
		j := &jobs[i]
		switch h, held := l.holdOf(j.ID); {
		case !held || h.at.IsZero() && !h.doubtful: // it is being sent
		case family(h.epoch) != family(j.Epoch):
			l.outdated(j.ID, h.epoch)
		case h.seq == 0 || h.epoch != j.Epoch: // nobody knows where it is, or a worker has passed it on
			l.endOf(j.ID, h.epoch, untold(j.CreatedAt))
		default:
			at := lane{h.provider, h.lane}
			cuts[at] = append(cuts[at], cut{h, j.ID})
			places[at] = append(places[at], queue.StoredPlace{JobID: j.ID, Seq: h.seq})
		}
	}
	lanes := l.givens()
	var errs []error // one provider's trouble is not the others'
	for at, cuts := range cuts {
		errs = append(errs, l.cutLane(ctx, lanes, at, cuts, places[at]))
	}
	return errors.Join(errs...)
}

// cutLane is cutShort for jobs whose messages were in one lane.
func (l *jobLimits) cutLane(ctx context.Context, lanes givens, at lane, cuts []cut, places []queue.StoredPlace) error {
	if err := l.conn.RemoveStored(ctx, at.provider, places); err != nil {
		return err
	}
	given := lanes.in(ctx, at)
	if given.err != nil && !errors.Is(given.err, queue.ErrNoQueue) {
		return given.err
	}
	for _, c := range cuts {
		if given.untouched(c.seq, c.at) {
			l.endOf(c.id, c.epoch, nil)
		} else {
			l.endOf(c.id, c.epoch, untold(time.Now()))
		}
	}
	return nil
}

// recalled takes the ids of jobs of which somebody has just told their workers that nobody
// wants them any more. Until the next sweep others behind them would be handed out, and
// nobody could say any more that these were not.
func (l *jobLimits) recalled(ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if l.holds[id] != nil {
			l.recalls[id] = true
		}
	}
	if len(l.recalls) > 0 {
		select {
		case l.recall <- struct{}{}:
		default:
		}
	}
}

// reviewRecalled looks at what jobs have in hand that were recalled, until ctx ends.
func (l *jobLimits) reviewRecalled(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.recall:
		}
		l.mu.Lock()
		ids := slices.Collect(maps.Keys(l.recalls))
		clear(l.recalls)
		l.mu.Unlock()
		_ = l.review(ctx, ids) // what it cannot find out the sweep does, and tells of what hinders it
	}
}
