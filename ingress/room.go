package ingress

import (
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// queueGone is how long the queue may be out of reach before new requests are refused
// at once. Shorter outages, such as a server's restart, they wait out.
const queueGone = 15 * time.Second

// ready reports why no request can be taken in at the moment, if so.
func (fs *flights) ready() error {
	if fs.conn.DisconnectedFor() > queueGone {
		return errQueueGone(nil)
	}
	return nil
}

func errQueueGone(err error) *inference.Error {
	return &inference.Error{Code: inference.CodeQueueUnavailable, Retryable: true, Message: "The queue is not available at the moment.", Err: err}
}

// fullFor is how long a queue is taken to be full after it has said so. It spares a
// queue that is under more load than it can take most of the asking, and is short
// against the time in which a place is missed.
const fullFor = 5 * time.Millisecond

// room reports why the job cannot be taken in: there are too many here, or its queue has
// just said that it is full, and so have those of the candidates that may stand in.
func (fs *flights) room(job *inference.Job, now time.Time) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(fs.byID) >= fs.most {
		return errBusy()
	}
	candidates := job.Candidates
	for now.Sub(fs.fullAt[candidates[0].Provider]) < fullFor {
		candidates = inference.NextCandidates(candidates, inference.ReasonUnavailable|inference.ReasonRateLimited, fs.workers.alive)
		if len(candidates) == 0 {
			provider := job.Candidate().Provider
			fs.metrics.refused(provider)
			return fs.publishError(queue.ErrFull, provider)
		}
	}
	job.Candidates = candidates
	return nil
}

// load is how many jobs of this ingress are with the provider.
func (fs *flights) load(provider string) int {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.counts[provider]
}

// recount takes a flight to the provider that has it now.
func (fs *flights) recount(f *flight) {
	provider := f.provider()
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.byID[f.job.ID] != f || f.counted == provider {
		return
	}
	fs.uncount(f)
	f.counted = provider
	fs.counts[provider]++
}

// uncount is called under mu.
func (fs *flights) uncount(f *flight) {
	if fs.counts[f.counted]--; fs.counts[f.counted] <= 0 {
		delete(fs.counts, f.counted)
	}
}

func (fs *flights) noteFull(provider string) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.fullAt[provider] = time.Now()
}
