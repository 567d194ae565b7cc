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
	accepted time.Time     // on this process's monotonic clock
	done     chan struct{} // closed when there is an answer, or none will come
	feed     *feed         // of a streamed answer
	window   time.Duration // how long the job goes on without its client
	memory   *share        // of the body, for as long as it may have to be published again

	counted string // the provider that it counts for; guarded by the flights' lock

	mu         sync.Mutex
	candidates []inference.Candidate // still to be tried; the job is with the first
	place      place
	attempts   int // calls that are known to have been made, lost runs not included
	tries      []inference.Try
	run        queue.Run // the run that counts; zero until one is heard of
	givenUp    queue.Run // the last run whose worker passed the job on
	held       bool      // a worker has said that it works on the run
	heldAt     time.Time // when one first said so
	heardAt    time.Time // the last word about the run
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
	if f.run != (queue.Run{}) && run != f.run || f.givenUp != (queue.Run{}) && run == f.givenUp {
		return // only a claim moves a job from one run to the next; and a word may come late
	}
	f.heard(run, now)
}

// heard notes that a worker is at the run. The caller holds mu.
func (f *flight) heard(run queue.Run, now time.Time) {
	f.run, f.held, f.heardAt = run, true, now
	if f.heldAt.IsZero() {
		f.heldAt = now
	}
}

// finish takes the end of a run, or one that the ingress itself decides on (with a
// zero run). It reports whether this is the end that counts.
func (f *flight) finish(e *queue.End, outcome inference.Outcome) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return false
	}
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
	if f.ended || !f.closing.IsZero() {
		return false
	}
	f.left, f.closing, f.outcome = now, now.Add(closingWait), outcome
	f.end = f.ownEnd(err)
	if !f.heldAt.IsZero() {
		f.end.Elapsed = now.Sub(f.heldAt) // or the wait for the provider would seem to be the queue's
	}
	close(f.done)
	return true
}

// ownEnd is an end that the ingress decides on. The caller holds mu.
func (f *flight) ownEnd(err *inference.Error) *queue.End {
	e := &queue.End{JobID: f.job.ID, Provider: f.at().Provider, Attempts: f.attempts, Tries: f.tries, Err: err}
	if f.held {
		e.Attempts++
	}
	return e
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
