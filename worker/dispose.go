package worker

import (
	"time"

	"sluice/internal/inference"
)

// disposition is what becomes of a job after a run, or instead of one.
type disposition int

const (
	toAnswer   disposition = iota // its end goes to the ingress
	toHold                        // it waits here until the provider can be called
	toGiveBack                    // another worker of the provider takes it
	toForward                     // the next candidate's workers take it
)

// outlook is what the disposition of a job depends on.
type outlook struct {
	err      *inference.Error // nil: it was answered
	started  bool             // chunks have been sent: no other run may follow
	blocked  bool             // no call was made, because none may be at the moment
	waited   time.Duration    // since it first might not be
	wait     time.Duration    // until the provider may be called, zero when that is not known
	left     time.Duration    // until the deadline
	patience time.Duration    // of a job that another candidate could serve
	next     bool             // another candidate may be tried for this reason
	peers    bool             // another worker of the provider does better, and may have the job
	leaving  bool             // this worker takes no more jobs, for good or for a while
}

// dispose decides. A worker that is as good comes before another candidate, and either
// of them before waiting, unless the wait is short. What only the provider's pace
// forbids is held rather than answered with 429, as long as the deadline allows.
func dispose(o outlook) disposition {
	if o.err == nil || o.started {
		return toAnswer
	}
	reason := o.err.Reason()
	mayHold := o.blocked || reason == inference.ReasonRateLimited && o.wait > 0 && o.wait < o.left
	switch {
	case reason == 0:
		return toAnswer
	case reason == inference.ReasonRateLimited && mayHold && o.waited+o.wait <= o.patience && !o.leaving:
		return toHold
	case o.peers && reason&(inference.ReasonUnavailable|inference.ReasonTimeout) != 0:
		return toGiveBack
	case o.next:
		return toForward
	case mayHold && o.leaving:
		return toGiveBack
	case mayHold:
		return toHold
	default:
		return toAnswer
	}
}
