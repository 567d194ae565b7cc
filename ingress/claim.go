package ingress

import (
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// at is the candidate that the job is with. The caller holds mu.
func (f *flight) at() inference.Candidate {
	if len(f.candidates) > 0 {
		return f.candidates[0]
	}
	return f.job.Candidate()
}

// provider is the one that the job is with.
func (f *flight) provider() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at().Provider
}

// claim judges whether another run may begin. To drop a job removes its message, also
// for whoever else holds it, so that is said only of a message that nobody needs: not
// while the row of an ended flight can still be lost with this process. lost is set
// when the answer had begun with a worker that is gone, or when too many workers were
// lost with this job: the caller ends the flight.
func (f *flight) claim(c queue.Claim, now time.Time) (j queue.Judgement, lost *inference.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j.Verdict, lost = f.judge(c, now)
	if j.Verdict == queue.VerdictRun {
		f.move(c.Run, c.Place, now)
		f.heard(c.Run, now)
		j.Attempts, j.Tries = f.attempts, f.tries
	}
	return j, lost
}

func (f *flight) judge(c queue.Claim, now time.Time) (v queue.Verdict, lost *inference.Error) {
	run, alive := c.Run, f.held && now.Sub(f.heardAt) < aliveFor
	passedOn := run.Epoch > f.run.Epoch && run.Epoch/inference.EpochStride == f.run.Epoch/inference.EpochStride
	switch {
	case f.ended || !f.closing.IsZero():
		return queue.VerdictWait, nil // until its row is safe: the flight is gone then
	case run.Epoch < f.run.Epoch || f.twin(c):
		return queue.VerdictDrop, nil // another message stands for the job
	case f.held && run == f.run:
		return queue.VerdictRun, nil // its worker was frozen or cut off, and nobody took over
	case !f.run.Before(run):
		return queue.VerdictWait, nil // the same message is in another worker's hands
	case passedOn && f.begun && alive:
		return queue.VerdictDrop, nil // whoever passed it on was not the only one to have it
	case !passedOn && alive:
		return queue.VerdictWait, nil
	case f.begun:
		return queue.VerdictWait, answerLost("The worker was lost while it answered.")
	case f.lostRuns >= maxLostRuns:
		return queue.VerdictWait, answerLost("Several workers were lost while they worked on this request.")
	}
	if f.held && !passedOn {
		f.lostRuns++
	}
	return queue.VerdictRun, nil
}

// twin reports whether the claim is for a second message of the same epoch: two workers
// passed the job on, one of them after it was thought lost. The first that is heard of
// stands for the job. The caller holds mu.
func (f *flight) twin(c queue.Claim) bool {
	if c.Run.Epoch != f.job.Epoch || f.place.seq == 0 || c.Place.Seq == 0 || len(c.Place.Candidates) == 0 {
		return false
	}
	return c.Place.Seq != f.place.seq || c.Place.Candidates[0].Provider != f.at().Provider
}

// move notes that a message of a later epoch stands for the job now, or where the one
// of this epoch is. The caller holds mu.
func (f *flight) move(run queue.Run, to queue.Place, now time.Time) {
	if to.Seq == 0 || len(to.Candidates) == 0 || run.Epoch < f.job.Epoch {
		return
	}
	f.job.Epoch, f.candidates = run.Epoch, to.Candidates
	f.place = place{seq: to.Seq, known: true, sent: now, firstSent: now}
	if f.run.Before(run) {
		f.run, f.held, f.heardAt = run, false, now
	}
}

// passed takes a worker's word that it gave the job up for another to do. It returns
// false if the word comes too late: then nobody needs the message that the worker
// published instead of its own.
func (f *flight) passed(p *queue.Passed, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.firstRun.hears(p.Run)
	if p.Attempts > f.attempts {
		f.attempts, f.tries = p.Attempts, p.Tries
	}
	if f.ended || !f.closing.IsZero() {
		f.held = f.held && p.Run != f.run // its calls are known now, for the row
		return false
	}
	if f.begun || p.Run.Before(f.run) {
		return true // another run was let begin; the message's claim will be judged
	}
	f.held, f.heardAt, f.givenUp = false, now, p.Run
	f.move(queue.Run{Epoch: p.Run.Epoch + 1}, p.Next, now)
	return true
}

// sidestep takes the job to the next candidate whose queue may take it, when the first
// one's does not. It returns false when there is none. The caller holds mu.
func (f *flight) sidestep(now time.Time, alive func(inference.Candidate) bool) bool {
	candidates := f.candidates
	if candidates == nil {
		candidates = f.job.Candidates
	}
	rest := inference.NextCandidates(candidates, inference.ReasonUnavailable|inference.ReasonRateLimited, alive)
	if len(rest) == 0 {
		return false
	}
	f.candidates = rest
	f.job.Epoch++
	f.place = place{known: f.place.known, sent: now, firstSent: now}
	return true
}
