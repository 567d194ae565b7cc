package queue

import (
	"time"

	"sluice/internal/inference"
)

// frameVersion stands first in every frame, so that processes of different versions
// notice each other instead of misreading.
const frameVersion = 2

// Run names one execution of a job. A later run fences an earlier one: the epoch
// rises when the ingress publishes the job again, the delivery when JetStream hands
// the same message to another worker.
type Run struct {
	Epoch    int
	Delivery int
}

// Before reports whether r is an earlier run than o.
func (r Run) Before(o Run) bool {
	return r.Epoch < o.Epoch || r.Epoch == o.Epoch && r.Delivery < o.Delivery
}

// Events are chunks of a streamed answer, as many as arrived together.
type Events struct {
	JobID    string
	Run      Run
	Worker   string
	FirstSeq uint64          // sequence number of the first chunk; the run's first is 1
	Elapsed  time.Duration   // since the worker took the job
	Attempts int             // provider calls made for the job so far
	Dropped  []string        // with the first chunk: fields of the request that the provider could not honour
	Tries    []inference.Try // with the first chunk: the calls that failed before
	Chunks   [][]byte        // JSON, without SSE framing
}

// End is how a run ended: a whole answer, the end of a streamed one, or an error.
type End struct {
	JobID    string
	Run      Run
	Worker   string
	Provider string
	Model    string        // what the provider says it used
	Elapsed  time.Duration // since the worker took the job
	Upstream time.Duration // the part of Elapsed spent in calls of the provider
	Attempts int
	Dropped  []string        // fields of the request that the provider could not honour
	Tries    []inference.Try // the calls that failed
	LastSeq  uint64          // chunks sent in this run
	Usage    inference.Usage
	Body     []byte // the whole answer when it was not streamed
	Err      *inference.Error

	// BodyRef names the blob that holds a Body too large for a message.
	BodyRef string

	bodyBytes int // how much the blob holds; only a Result carries it
}

// Claim is a worker's question, before it runs a job that was delivered or published
// before, whether the job is still wanted.
type Claim struct {
	JobID  string
	Run    Run
	Worker string
	Place  Place // of the message that the worker has
}

// Place is where a message stands for a job.
type Place struct {
	Candidates []inference.Candidate // still to be tried; the message is in the queue of the first
	Seq        uint64                // in that queue's stream
}

// Judgement is the ingress's answer to a Claim. A run that may begin goes on counting
// where those before it stopped.
type Judgement struct {
	Verdict  Verdict
	Attempts int
	Tries    []inference.Try
}

// Passed is a worker's word that it gives a job up without an end: back to its queue,
// for another worker, or to the queue of the next candidate, where a message of the
// next epoch stands for it.
type Passed struct {
	JobID    string
	Run      Run // the one that is given up
	Worker   string
	Attempts int
	Tries    []inference.Try
	Next     Place // the zero Place: back to its queue
}

// Verdict is the ingress's answer to a Claim.
type Verdict byte

// The verdicts on a claim.
const (
	VerdictRun  Verdict = 1 + iota // run it: the earlier run is lost and nothing of it was shown
	VerdictWait                    // the earlier run is alive, or not accounted for: put the job back for a moment
	VerdictDrop                    // nobody needs its message any more
)

// Held tells an ingress which of its jobs a worker holds.
type Held struct {
	Worker string
	Jobs   []HeldJob
}

// HeldJob is one job in a worker's hands.
type HeldJob struct {
	JobID string
	Run   Run
	Idle  bool // no call is made for it: the breaker of its model lets none through
}

func (w *writer) run(r Run) {
	w.int(r.Epoch)
	w.int(r.Delivery)
}

func (r *reader) run() Run { return Run{Epoch: r.int(), Delivery: r.int()} }

func newFrame(size int) *writer {
	w := &writer{b: make([]byte, 0, size)}
	w.b = append(w.b, frameVersion)
	return w
}

func openFrame(b []byte) *reader {
	r := &reader{b: b}
	if len(b) == 0 || b[0] != frameVersion {
		r.fail()
		return r
	}
	r.b = b[1:]
	return r
}

func (e *Events) encode() []byte {
	size := 64
	for _, c := range e.Chunks {
		size += len(c) + 4
	}
	w := &writer{b: make([]byte, 0, size)}
	e.append(w)
	return w.b
}

// append writes the frame behind what w has.
func (e *Events) append(w *writer) {
	w.b = append(w.b, frameVersion)
	w.run(e.Run)
	w.str(e.Worker)
	w.uint(e.FirstSeq)
	w.dur(e.Elapsed)
	w.int(e.Attempts)
	w.strs(e.Dropped)
	w.ownTries(e.Tries)
	w.int(len(e.Chunks))
	for _, c := range e.Chunks {
		w.bytes(c)
	}
}

func decodeEvents(jobID string, b []byte) (*Events, error) {
	r := openFrame(b)
	e := &Events{JobID: jobID, Run: r.run(), Worker: r.str(), FirstSeq: r.uint(), Elapsed: r.dur(), Attempts: r.int(), Dropped: r.strs(), Tries: r.ownTries()}
	e.Chunks = make([][]byte, 0, r.count(1))
	for range cap(e.Chunks) {
		e.Chunks = append(e.Chunks, r.bytes())
	}
	return e, r.end()
}

func (e *End) encode() []byte {
	w := newFrame(256 + len(e.Body))
	w.run(e.Run)
	w.str(e.Worker)
	w.str(e.Provider)
	w.str(e.Model)
	w.dur(e.Elapsed)
	w.dur(e.Upstream)
	w.int(e.Attempts)
	w.strs(e.Dropped)
	w.ownTries(e.Tries)
	w.uint(e.LastSeq)
	w.usage(e.Usage)
	w.bool(e.Err != nil)
	if e.Err != nil {
		w.err(e.Err)
	}
	w.str(e.BodyRef)
	w.bytes(e.Body)
	return w.b
}

func decodeEnd(jobID string, b []byte) (*End, error) {
	r := openFrame(b)
	e := &End{JobID: jobID, Run: r.run(), Worker: r.str(), Provider: r.str(), Model: r.str(), Elapsed: r.dur(), Upstream: r.dur(), Attempts: r.int(), Dropped: r.strs(), Tries: r.ownTries(), LastSeq: r.uint()}
	e.Usage = r.usage()
	if r.bool() {
		e.Err = r.domainErr()
	}
	e.BodyRef = r.str()
	e.Body = r.bytes()
	return e, r.end()
}

func (w *writer) usage(u inference.Usage) {
	w.bool(u.Known)
	w.bool(u.Estimated)
	for _, n := range [...]int64{u.PromptTokens, u.CompletionTokens, u.CachedTokens, u.ReasoningTokens} {
		w.uint(uint64(max(n, 0)))
	}
}

func (r *reader) usage() inference.Usage {
	u := inference.Usage{Known: r.bool(), Estimated: r.bool()}
	for _, n := range [...]*int64{&u.PromptTokens, &u.CompletionTokens, &u.CachedTokens, &u.ReasoningTokens} {
		*n = int64(r.uint() & (1<<63 - 1))
	}
	return u
}

func (w *writer) err(e *inference.Error) {
	w.str(string(e.Code))
	w.str(e.Message)
	w.str(e.Param)
	w.str(string(e.Refusal))
	w.bool(e.Retryable)
	w.dur(e.RetryAfter)
	w.int(e.Status)
	w.bytes(e.Body)
}

func (r *reader) domainErr() *inference.Error {
	return &inference.Error{
		Code: inference.ErrorCode(r.str()), Message: r.str(), Param: r.str(), Refusal: inference.Refusal(r.str()),
		Retryable: r.bool(), RetryAfter: r.dur(), Status: r.int(), Body: r.bytes(),
	}
}

func (h *Held) encode() []byte {
	w := newFrame(32 + len(h.Jobs)*(jobIDLen+4))
	w.str(h.Worker)
	w.int(len(h.Jobs))
	for _, j := range h.Jobs {
		w.str(j.JobID)
		w.run(j.Run)
	}
	h.appendIdle(w)
	return w.b
}

// appendIdle says which of the jobs are idle, by their place in the list. Where none is, the
// frame ends without a word of it, as it does from a worker that does not know of it.
func (h *Held) appendIdle(w *writer) {
	var idle []int
	for i, j := range h.Jobs {
		if j.Idle {
			idle = append(idle, i)
		}
	}
	if len(idle) == 0 {
		return
	}
	w.int(len(idle))
	for _, i := range idle {
		w.int(i)
	}
}

func decodeHeld(b []byte) (*Held, error) {
	r := openFrame(b)
	h := &Held{Worker: r.str()}
	h.Jobs = make([]HeldJob, 0, r.count(3))
	for range cap(h.Jobs) {
		h.Jobs = append(h.Jobs, HeldJob{JobID: r.str(), Run: r.run()})
	}
	if len(r.b) > 0 {
		h.readIdle(r)
	}
	return h, r.end()
}

func (h *Held) readIdle(r *reader) {
	n := r.count(1)
	if n == 0 {
		r.fail()
	}
	for range n {
		i := r.int()
		if i >= len(h.Jobs) {
			r.fail()
			return
		}
		h.Jobs[i].Idle = true
	}
}

// encodeIDs frames a list of job ids: those that are settled, or cancelled.
func encodeIDs(ids []string) []byte {
	w := newFrame(8 + len(ids)*(jobIDLen+1))
	w.int(len(ids))
	for _, id := range ids {
		w.str(id)
	}
	return w.b
}

func decodeIDs(b []byte) ([]string, error) {
	r := openFrame(b)
	ids := make([]string, 0, r.count(1))
	for range cap(ids) {
		ids = append(ids, r.str())
	}
	return ids, r.end()
}
