package worker

import (
	"context"
	"sync"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// errCancelled is why a run's context ends when nobody wants the job any more.
var errCancelled = inference.Errorf(inference.CodeCancelled, "The request was cancelled.")

// held is one job in the worker's hands, from its delivery to its acknowledgement.
type held struct {
	jobID    string
	lane     inference.Lane
	run      queue.Run
	delivery *queue.Delivery
	since    time.Time
	cancel   context.CancelCauseFunc
	settled  chan struct{} // closed when the ingress has taken the end
	runs     bool          // it may run; until then the worker only asks whether it may
	told     bool          // the ingress has been told that it is held here
	idle     bool          // it waits for the breaker of its model
	doubted  bool          // it may have been given to another worker meanwhile
}

// holdings are the jobs that a worker holds, and the ones cancelled of late: a
// cancellation may overtake the job that it means.
type holdings struct {
	mu        sync.Mutex
	jobs      map[string]*held
	cancelled [2]map[string]struct{} // this half minute's, and the one's before
	turned    time.Time
}

const (
	cancelledKept = 30 * time.Second
	cancelledMost = 100_000
)

func newHoldings() *holdings {
	return &holdings{
		jobs:      make(map[string]*held),
		cancelled: [2]map[string]struct{}{make(map[string]struct{}), make(map[string]struct{})},
		turned:    time.Now(),
	}
}

// add takes a job into the worker's hands. It returns false when the worker holds
// the job already.
func (h *holdings) add(j *held) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.jobs[j.jobID]; ok {
		return false
	}
	h.jobs[j.jobID] = j
	if h.wasCancelled(j.jobID) {
		j.cancel(errCancelled)
	}
	return true
}

func (h *holdings) wasCancelled(id string) bool {
	_, now := h.cancelled[0][id]
	_, before := h.cancelled[1][id]
	return now || before
}

// remove lets go of this delivery of the job. Another one may be in the worker's hands.
func (h *holdings) remove(j *held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.jobs[j.jobID] == j {
		delete(h.jobs, j.jobID)
	}
}

func (h *holdings) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.jobs)
}

// mayRun says that the job is not only asked about any more.
func (h *holdings) mayRun(j *held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	j.runs = true
}

// idle notes whether the job waits for the breaker of its model. Its ingress is told soon.
func (h *holdings) idle(j *held, waits bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if j.idle != waits {
		j.idle, j.told = waits, false
	}
}

// list returns the jobs of ingresses that run here: all of them, or only those not yet
// listed as they are now. One that is only asked about is left out, because the ingress would take it for
// the job's living run, and the real one for lost.
func (h *holdings) list(all bool) []queue.HeldJob {
	h.mu.Lock()
	defer h.mu.Unlock()
	var jobs []queue.HeldJob
	for _, j := range h.jobs {
		if j.runs && (all || !j.told) && !j.lane.Stored() {
			j.told = true
			jobs = append(jobs, queue.HeldJob{JobID: j.jobID, Run: j.run, Idle: j.idle})
		}
	}
	return jobs
}

// progress keeps the held jobs from being given to another worker. It returns those
// that are in doubt: of these the ingress is to be asked first.
func (h *holdings) progress() (doubted []*held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, j := range h.jobs {
		if j.doubted {
			doubted = append(doubted, j)
			continue
		}
		j.delivery.Progress()
	}
	return doubted
}

// doubt marks all that runs now as perhaps given to another worker. The question about
// a job that does not run yet is under way already.
func (h *holdings) doubt() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, j := range h.jobs {
		j.doubted = j.runs
	}
}

// trust takes a job out of doubt.
func (h *holdings) trust(j *held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	j.doubted = false
}

// Settled implements queue.Word.
func (h *holdings) Settled(jobIDs []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range jobIDs {
		j, ok := h.jobs[id]
		if !ok {
			continue
		}
		select {
		case <-j.settled:
		default:
			close(j.settled)
		}
	}
}

// Cancelled implements queue.Word.
func (h *holdings) Cancelled(jobIDs []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range jobIDs {
		if len(h.cancelled[0]) < cancelledMost {
			h.cancelled[0][id] = struct{}{}
		}
		if j, ok := h.jobs[id]; ok {
			j.cancel(errCancelled)
		}
	}
}

// forget lets go of old cancellations.
func (h *holdings) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.turned) < cancelledKept {
		return
	}
	h.cancelled[0], h.cancelled[1] = make(map[string]struct{}), h.cancelled[0]
	h.turned = time.Now()
}
