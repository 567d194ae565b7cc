package ingress

import (
	"sync"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// flight is one accepted job, from its publication until its answer is accounted
// for. What the queue says about the job, what the client does and what the clock
// says all meet here; the first word that ends the flight counts.
type flight struct {
	job      *inference.Job
	bodyRef  string
	accepted time.Time     // the beginning of its wait, on this process's monotonic clock
	done     chan struct{} // closed when there is an answer, or none will come
	feed     *feed         // of a streamed answer
	window   time.Duration // how long the job goes on without its client
	hold     *hold         // of its limits; nil: it has none
	settings *Settings     // that the request began with
	memory   *share        // of the body, for as long as it may have to be published again
	cache    *cacheCall    // its handler's; nil: the cache is off for it

	forsaken chan struct{} // told when nobody is left who could serve; nil: that changes nothing

	counted string // the provider that it counts for; guarded by the flights' lock

	mu         sync.Mutex
	firstRun   firstRun
	candidates []inference.Candidate // still to be tried; the job is with the first
	place      place
	attempts   int // calls that are known to have been made, lost runs not included
	tries      []inference.Try
	run        queue.Run // the run that counts; zero until one is heard of
	givenUp    queue.Run // the last run whose worker passed the job on
	held       bool      // a worker has said that it works on the run
	heldAt     time.Time // when one first said so
	heardAt    time.Time // the last word about the run
	idleSince  time.Time // its worker makes no call for it, as a breaker lets none through; zero: it may
	lost       bool      // no more is expected of whoever held it
	lostRuns   int
	begun      bool // a chunk of the run has come: no other run can take over
	opened     bool // other ingresses have been told of its events
	first      firstChunk

	end     *queue.End // the answer, or the error instead of it
	fetched bool       // a large answer was read by the client's handler, or given up
	outcome inference.Outcome
	ended   bool
	left    time.Time // when the wait for an answer was given up
	toldAt  time.Time // when its handler was last told that it is forsaken
	closing time.Time // nobody waits any more; until then the worker may still tell the usage

	clientGone bool      // the client dropped, and may come back until goneUntil
	goneUntil  time.Time // moved on by whoever reads the events elsewhere
}

// place is where the job stands in its provider's queue.
type place struct {
	seq       uint64    // zero until the server has confirmed the epoch
	known     bool      // the server has had the job, in this epoch or an earlier one
	sent      time.Time // the last publish
	firstSent time.Time // the first publish of this epoch
	askedAt   time.Time // when the queue was last asked whether it has the job
	lostAt    time.Time // when the queue was found to have lost the job, zero if it has not
}

// firstChunk tells of a streamed answer's beginning.
type firstChunk struct {
	after    time.Duration // since the acceptance
	elapsed  time.Duration // the part of it in which the worker had the job
	attempts int
	provider string
	tries    []inference.Try // the calls that failed
	dropped  []string        // fields of the request that the provider could not honour
}

// Bounds of what an ingress waits for.
const (
	aliveFor    = 3 * time.Second  // a run that was heard of so lately is alive
	silentFor   = 10 * time.Second // a begun run that was not heard of for so long is lost
	confirmWait = 2 * time.Second  // for the server to confirm a publish before it is repeated
	publishMost = 15 * time.Second // of trying to publish, while connected, before the request is refused
	lostGrace   = 3 * time.Second  // after a stream was lost, for workers to say what they hold
	closingWait = 3 * time.Second  // for the worker's word about a job that nobody waits for
	maxLostRuns = 3                // a job that loses so many workers is not given to another
)

// answerLost is the end of a job whose worker is gone after its answer had begun, or
// too often.
func answerLost(message string) *inference.Error {
	return &inference.Error{Code: inference.CodeWorkerLost, Message: message, Retryable: true}
}

// events takes chunks of a run. It reports whether they count.
func (f *flight) events(e *queue.Events, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.firstRun.hears(e.Run)
	if f.ended || f.begun && e.Run != f.run || e.Run.Before(f.run) {
		return false
	}
	f.heard(e.Run, now)
	if !f.begun {
		f.begun = true
		f.first = firstChunk{after: now.Sub(f.accepted), elapsed: e.Elapsed, attempts: e.Attempts, provider: f.at().Provider, tries: e.Tries, dropped: e.Dropped}
	}
	return true
}

// holds takes a worker's word that it works on the run.
func (f *flight) holds(run queue.Run, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.firstRun.hears(run)
	if f.run != (queue.Run{}) && run != f.run || f.givenUp != (queue.Run{}) && run == f.givenUp {
		return // only a claim moves a job from one run to the next; and a word may come late
	}
	f.heard(run, now)
}

// idles takes a worker's word on whether it makes no call for the run that it holds.
func (f *flight) idles(run queue.Run, idle bool, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case run != f.run || !f.held:
	case !idle:
		f.idleSince = time.Time{}
	case f.idleSince.IsZero():
		f.idleSince = now
	}
}

// idle reports whether the job waits in a worker's hands. One that has not been heard of for
// a while may be calling by now. The caller holds mu.
func (f *flight) idle(now time.Time) bool {
	return f.held && !f.idleSince.IsZero() && now.Sub(f.heardAt) < aliveFor
}

// heard notes that a worker is at the run. The caller holds mu.
func (f *flight) heard(run queue.Run, now time.Time) {
	if !f.held || f.run != run {
		f.idleSince = time.Time{}
	}
	f.run, f.held, f.heardAt = run, true, now
	f.firstRun.hears(run)
	if f.heldAt.IsZero() {
		f.heldAt = now
		f.hold.started()
	}
}

// finish takes the end of a run, or one that the ingress itself decides on (with a
// zero run). It reports whether this is the end that counts.
func (f *flight) finish(e *queue.End, outcome inference.Outcome) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.conclude(e, outcome)
}

// conclude is finish for a caller that holds mu.
func (f *flight) conclude(e *queue.End, outcome inference.Outcome) bool {
	if f.ended {
		return false
	}
	f.firstRun.hears(e.Run)
	own := e.Run == queue.Run{}
	if !own && (f.begun && e.Run != f.run || e.Run.Before(f.run) && (e.Err != nil || e.LastSeq > 0)) {
		return false // a fenced run; a whole plain answer is welcome whoever made it
	}
	if !f.closing.IsZero() {
		outcome = f.outcome // the reason was decided when the client went
	} else {
		f.end = e
		defer close(f.done)
	}
	f.ended, f.outcome = true, outcome
	e.Attempts += f.lostRuns
	f.dropBody()
	return true
}

// supersedes reports whether the end is of another run than the one in hand.
func (f *flight) supersedes(e *queue.End) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return e.Run != f.run && f.held
}

// dropBody lets go of the request's body: it is not published from here any more. The
// caller holds mu, or is alone with the flight.
func (f *flight) dropBody() {
	f.job.Body = nil
	if f.memory != nil {
		f.memory.release()
	}
}

// leave ends the wait for an answer: the client is gone, or its deadline has passed.
// The flight stays a moment for the worker's word about the usage. It reports whether
// this was news.
func (f *flight) leave(outcome inference.Outcome, err *inference.Error, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leaveAs(outcome, err, now)
}

// leaveAs is leave for a caller that holds mu.
func (f *flight) leaveAs(outcome inference.Outcome, err *inference.Error, now time.Time) bool {
	if f.ended || !f.closing.IsZero() {
		return false
	}
	f.left, f.closing, f.outcome = now, now.Add(closingWait), outcome
	f.end = f.ownEnd(err, now)
	if !f.heldAt.IsZero() {
		f.end.Elapsed = now.Sub(f.heldAt) // or the wait for the provider would seem to be the queue's
	}
	close(f.done)
	return true
}

// endHere ends the flight by the ingress's own word. Who waits for it is told at once. The
// row waits, as after leave, if a call may have been made that nobody has heard of. It
// returns the end, nil if the flight has one already. The caller holds mu.
func (f *flight) endHere(err *inference.Error, now time.Time) (e *queue.End, rowWaits bool) {
	if f.ended || !f.closing.IsZero() {
		return nil, false
	}
	if f.untold() {
		f.leaveAs(outcomeOf(err), err, now)
		return f.end, true
	}
	e = f.ownEnd(err, now)
	f.conclude(e, outcomeOf(err))
	return e, false
}

// ownEnd is an end that the ingress decides on. The caller holds mu.
func (f *flight) ownEnd(err *inference.Error, now time.Time) *queue.End {
	return &queue.End{JobID: f.job.ID, Provider: f.at().Provider, Attempts: f.made(now), Tries: f.tries, Err: err}
}

// made is how many calls were made as far as is known. The caller holds mu.
func (f *flight) made(now time.Time) int {
	if f.held && !f.idle(now) {
		return f.attempts + 1
	}
	return f.attempts
}

// record is the ledger's row of the flight, given its last end.
func (f *flight) record(e *queue.End, now time.Time) inference.Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	j, ended := f.job, now
	if !f.left.IsZero() {
		ended = f.left // what came after is the wait for the worker's word
	}
	r := inference.Record{
		JobID: j.ID, RequestID: j.RequestID, Kind: j.Kind, Tenant: j.Tenant, KeyID: j.KeyID, ModelAsked: j.Model,
		Provider: f.at().Provider, ModelServed: e.Model, Stream: j.Stream, Usage: e.Usage, Attempts: e.Attempts, Tries: e.Tries,
		Outcome: f.outcome, Status: 200, CreatedAt: j.CreatedAt, FirstToken: f.first.after, Total: ended.Sub(f.accepted),
	}
	if e.Provider != "" {
		r.Provider = e.Provider
	}
	switch {
	case f.begun && !f.left.IsZero():
		r.Queue = max(f.first.after-f.first.elapsed, 0)
	case e.Worker != "":
		r.Queue = min(max(now.Sub(f.accepted)-e.Elapsed, 0), r.Total)
	default:
		r.Queue = r.Total
	}
	if err := f.end.Err; err != nil {
		r.ErrorCode, r.Status = err.Code, statusOf(err)
	}
	return r
}

// outcomeOf says how a request ended that ended with this error, or none.
func outcomeOf(e *inference.Error) inference.Outcome {
	switch {
	case e == nil:
		return inference.OutcomeSucceeded
	case e.Code == inference.CodeDeadlineExceeded:
		return inference.OutcomeExpired
	case e.Code == inference.CodeCancelled:
		return inference.OutcomeCancelled
	default:
		return inference.OutcomeFailed
	}
}
