package ingress

import (
	"context"
	"errors"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/limits"
)

// limiting asks for requests whether their limits let them in.
type limiting struct {
	by      limits.Reserver
	lines   limitLines
	metrics *limitMetrics
	orphans limitKeys // those of calls that have outlived their ingress
}

// newLimiting returns nothing if nothing limits.
func newLimiting(s *Ingress) *limiting {
	if s.opt.Limiter == nil {
		return nil
	}
	return &limiting{
		by: s.opt.Limiter, metrics: newLimitMetrics(s.metrics.reg),
		orphans: limitKeys{store: s.opt.Keys, byID: make(map[string]*limits.Limits)},
		lines:   limitLines{most: s.opt.MaxInFlight, byScope: make(map[string]*limitLine)},
	}
}

// limited is a request that something limits.
type limited struct {
	settings *LimitSettings
	model    string // that it counts for
	waits    bool   // until it fits
	demand   limits.Demand
	size     size
	job      *inference.Job

	renewed   func() limits.Demand // what it asks by the limits that hold now, while it waits; nil: they do not change
	overtaken <-chan struct{}      // closed when another request got the answer; nil: that is not looked for
}

// limitsOf returns what the request asks of its limits, or nil if nothing limits it.
func (s *Ingress) limitsOf(adm *admission) *limited {
	if s.limits == nil {
		return nil
	}
	job, l := adm.job, &adm.settings.Limits
	table := s.table(adm.settings)
	model := countedModel(table, job.Model, job.Candidates)
	p := payer{key: job.KeyID, own: adm.ownLimits, tenant: job.Tenant, model: model}
	scopes := l.scopes(p)
	if len(scopes) == 0 {
		return nil
	}
	d := l.demand(scopes, job, adm.size, table, job.CreatedAt)
	d.Ends = job.Deadline
	return &limited{settings: l, model: model, waits: l.waits(p), size: adm.size, job: job, demand: d}
}

// demandNow is what a request asks that only waits for its limits: it has not begun, and
// goes by the bounds that hold by now, those of its key or its token's issuer, its tenant
// and its model. All else, such as its route and its prices, is that of the settings that
// it came with.
func (s *Ingress) demandNow(adm *admission, q *limited) limits.Demand {
	now, job := s.current(), adm.job
	own := s.keys.limitsNow(now, adm)
	scopes := now.Limits.scopes(payer{key: job.KeyID, own: own, tenant: job.Tenant, model: q.model})
	d := q.settings.demand(scopes, job, q.size, s.table(adm.settings), job.CreatedAt)
	d.Queued, d.Ends = true, job.Deadline
	return d
}

// reserve takes what the request asks for, at once or not at all. A request that may pass
// because the counters are out of reach has a hold, too: what it takes is told to them
// when it ends.
func (l *limiting) reserve(ctx context.Context, q *limited) (*hold, error) {
	if r := l.lines.refusal(&q.demand); r != nil {
		return nil, r
	}
	return l.ask(ctx, q)
}

func (l *limiting) ask(ctx context.Context, q *limited) (*hold, error) {
	h := l.unreserved(q)
	var err error
	h.reservation, err = l.by.Reserve(ctx, q.demand)
	switch {
	case err == nil:
		return h, nil
	case !errors.Is(err, limits.ErrUnavailable):
		return nil, err
	case q.settings.FailOpen:
		l.metrics.open.Inc()
		h.reservation = nil
		return h, nil
	}
	l.metrics.closed.Inc()
	return nil, err
}

// Bounds of the pause after which the first of a line asks again.
const (
	askLeast = 5 * time.Millisecond // also after something was given back here
	askMost  = time.Second          // other ingresses give back, too
)

// errOvertaken ends the waiting of a request whose answer another one got.
var errOvertaken = errors.New("an identical request was answered meanwhile")

// await waits until the request fits, until ctx ends, until it is overtaken, or for an error
// that waiting does not change. It calls idle now and then, whose error ends the waiting.
func (l *limiting) await(ctx context.Context, q *limited, r *limits.Refusal, every time.Duration, idle func() error) (*hold, error) {
	place, err := l.place(ctx, q)
	if err != nil {
		return nil, err
	}
	defer place.Release()
	w := l.lines.enter(q.demand.Scopes)
	if w == nil {
		return nil, errBusy()
	}
	defer l.lines.leave(w)
	l.metrics.waits.Inc()
	l.metrics.waiting.Inc()
	defer l.metrics.waiting.Dec()
	beat := time.NewTicker(every)
	defer beat.Stop()
	again := l.lines.stand(w, r)
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-q.overtaken:
			return nil, errOvertaken
		case <-beat.C:
			if err := idle(); err != nil {
				return nil, err
			}
			continue
		case <-w.wake:
			again = time.After(askLeast) // much may be given back at once
			continue
		case <-again:
		}
		if q.renewed != nil {
			q.demand = q.renewed()
			w.scopes = q.demand.Scopes
		}
		if !l.lines.turn(w) {
			again = nil
			continue
		}
		h, err := l.ask(ctx, q)
		r, refused := errors.AsType[*limits.Refusal](err)
		if !refused || final(r) {
			return h, err
		}
		again = l.lines.stand(w, r)
	}
}

// final reports whether waiting is of no use, or not allowed.
func final(r *limits.Refusal) bool { return r.RetryAfter <= 0 || r.Limit == limitQueued }

// waitingSuffix makes of a scope the one in which its waiting requests are counted.
const waitingSuffix = "/waiting"

func waitingScope(s *limits.Scope) limits.Scope {
	return limits.Scope{ID: s.ID + waitingSuffix, Limits: limits.Limits{Queued: s.Limits.Queued}}
}

// place counts the request among those that wait, of which a scope has no more than its
// limit on queued ones, however many ingresses there are.
func (l *limiting) place(ctx context.Context, q *limited) (limits.Reservation, error) {
	var scopes []limits.Scope
	for _, s := range q.demand.Scopes {
		if s.Limits.Queued > 0 {
			scopes = append(scopes, waitingScope(&s))
		}
	}
	if len(scopes) == 0 {
		return nowhere{}, nil
	}
	place, err := l.by.Reserve(ctx, limits.Demand{Scopes: scopes, Queued: true})
	if r, ok := errors.AsType[*limits.Refusal](err); ok {
		full := *r
		full.Scope = strings.TrimSuffix(r.Scope, waitingSuffix)
		return nil, &full
	}
	if errors.Is(err, limits.ErrUnavailable) && q.settings.FailOpen {
		return nowhere{}, nil
	}
	return place, err
}

// nowhere is the place of a request whose waiting nothing bounds.
type nowhere struct{}

func (nowhere) Started()                         {}
func (nowhere) Settle(_ int64, _ inference.Cost) {}
func (nowhere) Release()                         {}
func (nowhere) Abandon()                         {}
