package ingress

import (
	"cmp"
	"sync/atomic"
	"time"

	"sluice/internal/inference"
	"sluice/internal/limits"
)

// hold is what a request has in hand of its limits, until it ends for the first time; after
// that nothing changes it. A nil hold is that of a request without limits.
type hold struct {
	limiting    *limiting
	settings    *LimitSettings
	demand      limits.Demand
	prompt      int64 // tokens, estimated
	candidates  []inference.Candidate
	reservation limits.Reservation // nil: the counters were out of reach, and it passed
	over        atomic.Bool
}

// unreserved returns the hold of a request for which nothing is reserved: what it takes is
// charged when it ends.
func (l *limiting) unreserved(q *limited) *hold {
	return &hold{limiting: l, settings: q.settings, demand: q.demand, prompt: q.size.prompt, candidates: q.job.Candidates}
}

// started says that a worker has begun the request.
func (h *hold) started() {
	if h != nil && h.reservation != nil {
		h.reservation.Started()
	}
}

// release ends the hold of a request that took nothing.
func (h *hold) release() {
	if h == nil || h.over.Swap(true) {
		return
	}
	if h.reservation != nil {
		h.reservation.Release()
	}
	h.limiting.lines.wake(h.demand.Scopes)
}

// keep ends the hold of a request of which nobody will say here what it took: it may have
// taken all that it asked for.
func (h *hold) keep() { h.take(spent{h.tokens(), h.cost()}) }

// abandon is keep for a request that may go on without this ingress, which stops.
func (h *hold) abandon() {
	switch {
	case h == nil || h.reservation == nil:
		h.keep()
	case !h.over.Swap(true):
		h.reservation.Abandon()
	}
}

// end ends the hold with the request's row in the ledger.
func (h *hold) end(r *inference.Record) { h.endAfter(r, false) }

// endAfter is end for a request of which a call may have been lost that its row does not
// have.
func (h *hold) endAfter(r *inference.Record, lost bool) {
	if h == nil {
		return
	}
	took, known := h.settings.spent(r)
	switch {
	case known:
	case r.Outcome == inference.OutcomeSucceeded:
		took = spent{h.tokens(), h.cost()} // the provider did not say
	case lost || reached(r):
		took = spent{h.prompt, h.settings.dearest(h.candidates, r.ModelAsked, h.prompt, 0, r.CreatedAt)}
	default:
		h.release()
		return
	}
	h.take(took)
}

func (h *hold) tokens() int64 {
	if h == nil {
		return 0
	}
	return h.demand.Tokens
}

func (h *hold) cost() inference.Cost {
	if h == nil {
		return 0
	}
	return h.demand.Cost
}

func (h *hold) take(s spent) {
	if h == nil || h.over.Swap(true) {
		return
	}
	if h.reservation != nil {
		h.reservation.Settle(s.tokens, s.cost)
	} else {
		h.limiting.by.Charge(limits.Demand{Scopes: h.demand.Scopes, Tokens: s.tokens, Cost: s.cost})
	}
	h.limiting.lines.wake(h.demand.Scopes)
}

// spent is what a request took.
type spent struct {
	tokens int64
	cost   inference.Cost
}

// spent is what the ledger says that a request took. It says nothing of one that failed
// without any.
func (l *LimitSettings) spent(r *inference.Record) (s spent, known bool) {
	s.tokens = r.Usage.PromptTokens + r.Usage.CompletionTokens
	if !r.Usage.Known || s.tokens == 0 && r.Outcome != inference.OutcomeSucceeded {
		return spent{}, false
	}
	if l.RowCost != nil {
		s.cost, _ = l.RowCost(r)
	} else if l.Price != nil {
		at := cmp.Or(r.CreatedAt, time.Now())
		s.cost, _ = l.Price(r.Provider, cmp.Or(r.ModelServed, r.ModelAsked), r.ModelAsked, r.Usage.PromptTokens, r.Usage.CompletionTokens, at)
	}
	return s, true
}

// reached reports whether a provider worked on a request that did not succeed, and so has
// read its prompt. One that answered with an error did not; nor did one that was never
// called. What a request took that is not known to have reached a provider is given back.
func reached(r *inference.Record) bool {
	if r.Attempts == 0 {
		return false
	}
	if r.FirstToken > 0 || worked(r.ErrorCode) {
		return true
	}
	for _, t := range r.Tries {
		if worked(t.Code) {
			return true
		}
	}
	told := len(r.Tries) // calls that were answered with an error
	if !unanswered(r.ErrorCode) {
		if told == inference.MaxTries {
			return false // those before were tries like them
		}
		if told == 0 || r.Tries[told-1].Code != r.ErrorCode {
			told++ // the last one, of which the row's own error tells
		}
	}
	return r.Attempts > told // the others were lost, or given up while the provider was at them
}

// worked reports whether a call that failed so had the provider work on it.
func worked(c inference.ErrorCode) bool {
	switch c {
	case inference.CodeUpstreamCut, inference.CodeUpstreamTimeout, inference.CodeUpstreamInvalid, inference.CodeUpstreamTooLarge:
		return true
	}
	return false
}

// unanswered reports whether an error says nothing of what a provider answered.
func unanswered(c inference.ErrorCode) bool {
	switch c {
	case inference.CodeCancelled, inference.CodeDeadlineExceeded, inference.CodeWorkerLost, inference.CodeEventsLost,
		inference.CodePurged, inference.CodeQueueUnavailable:
		return true
	}
	return false
}

// keepHolds ends the holds of jobs that this ingress does not see through: it stops, and
// their workers go on. When such a call has ended another ingress hears of it, see orphaned.
func (fs *flights) keepHolds() {
	for _, f := range fs.all() {
		f.hold.abandon()
	}
}
