package ingress

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/queue"
	"sluice/internal/routing"
)

// jobLimits keeps stored jobs within limits. They wait by nature: one that does not fit
// when it is about to get its message is put off. What is reserved is in the hands of the
// ingress that published the message until the job ends or that message stands for it no
// more, and it is that ingress that counts what was taken: at once where the result comes
// in to it, else when it finds in the database that the job has ended. So nothing is lost
// with whoever took the result. The one that did charges a job itself only if it is of a
// message that stood for the job no more, and the database knew of no other: then nobody has
// anything in hand for it, unless another message was on its way, which counts as well.
// A round that leaves its job unfinished is counted by whoever has the next one follow; and
// of a job that ends without a worker's word counts what a worker was given. What an ingress
// had in hand that is gone, another one takes over, which counts in its place: see adoption.
type jobLimits struct {
	*limiting
	rows     JobWatch
	conn     *queue.Conn
	settings func() *Settings
	table    func(of *Settings) *routing.Table
	keys     limitKeys
	freed    func() // a job that was put off may fit
	log      *slog.Logger
	looked   atomic.Bool // what ingresses had in hand that were gone at the start is in hand here

	mu      sync.Mutex
	holds   map[string]*jobHold // by job
	leaving []leaving           // the oldest first
	putOffs map[string]putOff   // by scope
	next    time.Time           // when the first job that was put off shortly comes up again
	recalls map[string]bool     // jobs with holds that somebody has cancelled just now
	recall  chan struct{}       // there are some
}

// jobHold is what a job has in hand, and its message: the epoch under which it was
// published, and where it went.
type jobHold struct {
	*hold
	epoch    int
	lane     inference.Lane
	provider string
	seq      uint64    // zero: not known
	at       time.Time // after the server had it; zero: it is being sent, or nobody knows
	doubtful bool      // the queue may have it, or has it, and the database does not know
}

// leaving is a hold that another ingress counts for. It stays until that has surely been told:
// were it given back before, somebody else could have its place meanwhile.
type leaving struct {
	*hold
	since time.Time
}

// putOff says until when nothing more is asked of a scope that has refused a job, as long
// as its limit is the one that did.
type putOff struct {
	limit string
	most  int64
	until time.Time
	jobs  int           // put off since
	short time.Duration // its length, where it may end with any job of the scope; else zero
}

// Rhythm and bounds of that.
const (
	holdsEvery  = 5 * time.Second
	leavesAfter = 4 * time.Second
	jobHolds    = 200_000 // messages of limited jobs, from this ingress
	putOffLeast = time.Second
	putOffMost  = time.Minute
	putOffShort = 250 * time.Millisecond // by a limit on concurrent requests, at first
	shortMost   = 2 * time.Second
	putOffStep  = 10 * time.Millisecond // between two jobs that come up again
	putOffsMost = 10_000
)

// newJobLimits returns nothing if nothing limits.
func newJobLimits(s *Ingress, freed func()) *jobLimits {
	if s.limits == nil {
		return nil
	}
	return &jobLimits{
		limiting: s.limits, rows: s.opt.Jobs.Store, conn: s.conn, settings: s.current, table: s.table, freed: freed, log: s.log,
		keys:  limitKeys{store: s.opt.Keys, byID: make(map[string]*limits.Limits)},
		holds: make(map[string]*jobHold), putOffs: make(map[string]putOff),
		recalls: make(map[string]bool), recall: make(chan struct{}, 1),
	}
}

// admit reserves for a job that is about to get its message. until says that it is put
// off; an error, that it can never be served. down is whether the counters were out of
// reach for a job before it, and becomes so. lent are limits that came with the job.
func (l *jobLimits) admit(ctx context.Context, job *inference.Job, lent *limits.Limits, down *bool) (until time.Time, never *inference.Error) {
	if l == nil {
		return time.Time{}, nil
	}
	now := time.Now()
	q, known := l.demanded(ctx, job, lent, now)
	switch {
	case !known:
		return now.Add(putOffLeast), nil
	case q == nil || l.again(job):
		return time.Time{}, nil
	case !l.looked.Load():
		return now.Add(putOffLeast), nil
	case *down && q.settings.FailOpen:
		l.metrics.open.Inc()
		return l.keep(job, l.unreserved(q), now), nil
	case *down:
		l.metrics.closed.Inc()
		return now.Add(putOffLeast), nil
	}
	if until := l.later(q.demand.Scopes, now); !until.IsZero() {
		l.metrics.putOff.Inc()
		return until, nil
	}
	h, err := l.reserve(ctx, q)
	r, refused := errors.AsType[*limits.Refusal](err)
	switch {
	case refused && r.RetryAfter <= 0:
		l.metrics.refused(r)
		return time.Time{}, errRefused(r, q.model)
	case refused:
		l.metrics.putOff.Inc()
		return l.refused(r, now), nil
	case err != nil:
		*down = errors.Is(err, limits.ErrUnavailable)
		return now.Add(putOffLeast), nil
	case h.reservation == nil:
		*down = true // it may pass
	}
	return l.keep(job, h, now), nil
}

// keep notes the job's hold. until says that it is put off: there are too many.
func (l *jobLimits) keep(job *inference.Job, h *hold, now time.Time) (until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.holds)+len(l.leaving) >= jobHolds {
		h.release()
		return now.Add(putOffLeast)
	}
	l.holds[job.ID] = &jobHold{hold: h, epoch: job.Epoch, lane: job.Lane, provider: job.Candidate().Provider}
	return time.Time{}
}

// demanded is limited, as long as anybody knows.
func (l *jobLimits) demanded(ctx context.Context, job *inference.Job, lent *limits.Limits, now time.Time) (q *limited, known bool) {
	q, err := l.limited(ctx, job, lent, now)
	return q, err == nil
}

// limited returns what the job asks of its limits, or nil if nothing limits it. The limit
// on queued requests is none of it: a job may wait, and jobs have a bound of their own.
func (l *jobLimits) limited(ctx context.Context, job *inference.Job, lent *limits.Limits, now time.Time) (*limited, error) {
	settings := l.settings()
	p, err := l.payer(ctx, settings, lent, job.KeyID, job.Tenant, job.Model, job.Candidates)
	if err != nil {
		return nil, err
	}
	scopes := settings.Limits.scopes(p)
	for i := range scopes {
		scopes[i].Limits.Queued = 0
	}
	if len(scopes) == 0 {
		return nil, nil //nolint:nilnil // nothing limits it
	}
	op := chatCompletion
	if job.Kind == inference.KindEmbeddings {
		op = embedding
	}
	req, err := op.parse(job.Body)
	if err != nil {
		return nil, err
	}
	q := &limited{settings: &settings.Limits, model: p.model, size: sizeOf(&req), job: job}
	q.demand = q.settings.demand(scopes, job, q.size, l.table(settings), now)
	return q, nil
}

// payer returns whom a job counts for. What it brought of its caller's limits comes before
// what the key says.
func (l *jobLimits) payer(ctx context.Context, settings *Settings, lent *limits.Limits, key, tenant, model string, candidates []inference.Candidate) (p payer, err error) {
	p = payer{key: key, own: lent, tenant: tenant, model: countedModel(l.table(settings), model, candidates)}
	if lent == nil {
		p.own, err = l.keys.of(ctx, settings.StaticKeys, key)
	}
	return p, err
}

// again reports whether the job has a hold for this message. One that it has for an earlier
// one has had its time.
func (l *jobLimits) again(job *inference.Job) bool {
	h, held := l.holdOf(job.ID)
	if held && family(h.epoch) < family(job.Epoch) {
		l.outdated(job.ID, h.epoch)
		return false
	}
	return held
}

// sent notes where the job's message stands.
func (l *jobLimits) sent(job *inference.Job, seq uint64) {
	l.note(job.ID, func(h *jobHold) { h.seq, h.at = seq, time.Now() })
}

// doubt notes that the database will never know of the job's message, if there is one.
func (l *jobLimits) doubt(id string) {
	l.note(id, func(h *jobHold) { h.doubtful = true })
}

func (l *jobLimits) note(id string, change func(*jobHold)) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.holds[id]; h != nil {
		change(h)
	}
}

// later returns until when a job is put off whose scopes have refused another one lately;
// zero if none has. Such jobs do not all come up again at once.
func (l *jobLimits) later(scopes []limits.Scope, now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range scopes {
		at, known := l.putOffs[scopes[i].ID]
		if !known || !now.Before(at.until) || boundOf(at.limit, &scopes[i].Limits) != at.most {
			continue
		}
		at.jobs++
		l.putOffs[scopes[i].ID] = at
		return earlier(at.until.Add(time.Duration(at.jobs)*putOffStep), now.Add(putOffMost))
	}
	return time.Time{}
}

// refused notes a refusal and returns until when its job is put off.
func (l *jobLimits) refused(r *limits.Refusal, now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.putOffs) >= putOffsMost {
		clear(l.putOffs) // they come back, one question each
	}
	at := putOff{limit: r.Limit, most: r.Most, until: now.Add(min(max(r.RetryAfter, putOffLeast), putOffMost))}
	if r.Limit == "concurrent" {
		at.short = min(max(2*l.putOffs[r.Scope].short, putOffShort), shortMost)
		at.until = now.Add(at.short)
		if l.next.IsZero() || at.until.Before(l.next) {
			l.next = at.until
		}
	}
	l.putOffs[r.Scope] = at
	return at.until
}

// due returns when jobs come up again that were put off shortly; nil: none were.
func (l *jobLimits) due(now time.Time) <-chan time.Time {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next.IsZero() {
		return nil
	}
	left := l.next.Sub(now)
	if left <= 0 {
		l.next = time.Time{} // the round that begins now is theirs
	}
	return time.After(left)
}

// holdOf returns the job's hold as it is, if we have one.
func (l *jobLimits) holdOf(id string) (h jobHold, held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at := l.holds[id]; at != nil {
		return *at, true
	}
	return jobHold{}, false
}

// hold takes the job's hold out of our hands, if we have one that is not for a later message
// than those of the epoch's family.
func (l *jobLimits) hold(id string, epoch int) *jobHold {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.holds[id]
	if h == nil || family(h.epoch) > family(epoch) {
		return nil
	}
	delete(l.holds, id)
	return h
}

// over is called after a job's hold has ended: who waits for its place may have it.
func (l *jobLimits) over(h *hold) {
	waited := false
	l.mu.Lock()
	for i := range h.demand.Scopes {
		if id := h.demand.Scopes[i].ID; l.putOffs[id].short > 0 {
			delete(l.putOffs, id)
			waited = true
		}
	}
	l.mu.Unlock()
	if waited {
		l.freed()
	}
}

// unsent gives back what a job has in hand whose message no queue took.
func (l *jobLimits) unsent(job *inference.Job) {
	if l == nil {
		return
	}
	if h := l.hold(job.ID, job.Epoch); h != nil {
		h.release()
		l.over(h.hold)
	}
}

// family is what the epochs of a message and of those that workers derive from it share.
func family(epoch int) int { return epoch / inference.EpochStride }

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
