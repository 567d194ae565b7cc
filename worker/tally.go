package worker

import (
	"sync"
	"time"
)

// tally counts for each job how often in a row something has failed here. What fails
// sends the job back to the queue, and the next delivery may come to another worker:
// so each worker counts for itself, and forgets in time what it never saw again.
type tally struct {
	mu     sync.Mutex
	counts [2]map[string]int // of this period, and of the one before
	turned time.Time
}

const (
	tallyKept = 2 * time.Minute // since a job failed last; perhaps up to twice as long
	tallyMost = 10_000          // jobs in one period; the next one begins when there are more
)

func newTally() *tally {
	return &tally{counts: [2]map[string]int{make(map[string]int), make(map[string]int)}, turned: time.Now()}
}

// add counts one more failure of the job and returns how many it has had in a row.
func (t *tally) add(jobID string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if age := time.Since(t.turned); age >= 2*tallyKept {
		t.turn()
		t.turn()
	} else if age >= tallyKept || len(t.counts[0]) >= tallyMost {
		t.turn()
	}
	n := max(t.counts[0][jobID], t.counts[1][jobID]) + 1
	t.counts[0][jobID] = n
	return n
}

// turn begins a period. The caller holds mu.
func (t *tally) turn() {
	t.counts[0], t.counts[1] = make(map[string]int), t.counts[0]
	t.turned = time.Now()
}

// clear forgets the job's failures.
func (t *tally) clear(jobID string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.counts[0], jobID)
	delete(t.counts[1], jobID)
}

// count returns how many failures the job has had in a row.
func (t *tally) count(jobID string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(t.counts[0][jobID], t.counts[1][jobID])
}
