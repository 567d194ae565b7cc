package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/limits"
)

// limitDeadline is what clients give their requests: also those that wait for a limit.
const limitDeadline = 3 * time.Second

// ask prepares a request and has the book expect it.
func (r *replicas) ask(h *holder, model, name string, most, gives int) *entry {
	e := &entry{
		name: name, key: h, model: model, most: most, gives: gives, lasts: 10 * time.Millisecond,
		tallies: r.tallies(h, model), asked: time.Now(), deadline: time.Now().Add(time.Hour),
	}
	r.book.expect(e)
	return e
}

func (e *entry) body(stream bool) string {
	// The name comes first, and a few words more, so that every prompt has some tokens.
	return fmt.Sprintf(`{"model":%q,"stream":%t,"max_tokens":%d,"messages":[{"role":"user","content":"%s is the name"}]}`, e.model, stream, e.most, e.name)
}

// plain makes the request and returns its status; zero: there was no answer.
func (r *replicas) plain(in *ingress, e *entry) int {
	status, _ := r.send(r.t.Context(), in, e, false, nil)
	return status
}

func (r *replicas) send(ctx context.Context, in *ingress, e *entry, stream bool, header http.Header) (int, []byte) {
	resp, err := in.as(e.key.secret).post(ctx, e.body(stream), header)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, text
	}
	return resp.StatusCode, text
}

// storm is random load on all keys.
type storm struct {
	*replicas
	seed uint64
	keys []*holder

	mu       sync.Mutex
	statuses map[int]int
	jobs     map[string]*holder // by id
	batches  []*stormBatch
}

// randomKeys stores keys with random limits.
func (r *replicas) randomKeys(random *rand.Rand, many int) (keys []*holder) {
	r.t.Helper()
	perhaps := func(of int, least, most int64) int64 {
		if random.IntN(100) >= of {
			return 0
		}
		return least + random.Int64N(most-least+1)
	}
	for i := range many {
		l := limits.Limits{
			RequestsPerMinute: perhaps(70, 3, 40), TokensPerMinute: perhaps(50, 150, 1200),
			Concurrent: perhaps(70, 1, 3), Queued: perhaps(30, 1, 3),
		}
		money := inference.Cost(perhaps(40, 150, 900)) * promptPrice
		switch random.IntN(3) {
		case 0:
			l.Budget.Day = money
		case 1:
			l.Budget.Week = money
		default:
			l.Budget.Month = money
		}
		if random.IntN(3) == 0 {
			l.OnLimit = limits.Queue
		}
		if random.IntN(4) == 0 {
			l.Models = []limits.ModelLimits{{Models: []string{"glob-own"}, RequestsPerMinute: 2 + random.Int64N(8), Concurrent: 1}}
		}
		tenant := "default"
		if random.IntN(2) == 0 {
			tenant = fmt.Sprintf("team-%d", random.IntN(4))
		}
		keys = append(keys, r.key(fmt.Sprintf("k%02d", i), tenant, l))
	}
	return keys
}

// client makes one random request after another until the context ends.
func (s *storm) client(ctx context.Context, n int) {
	random := rand.New(rand.NewPCG(s.seed, uint64(n)))
	models := []string{clusterModel, clusterModel, "glob-own", limitedModel}
	for i := 0; ctx.Err() == nil; i++ {
		h := s.keys[min(random.IntN(len(s.keys)), random.IntN(len(s.keys)))]
		most := 3 + random.IntN(30)
		e := s.ask(h, models[random.IntN(len(models))], fmt.Sprintf("r-%d-%d", n, i), most, 1+random.IntN(most))
		e.lasts = time.Duration(random.IntN(250)) * time.Millisecond
		e.deadline = time.Now().Add(limitDeadline)
		s.one(random, s.door(random.IntN(len(s.doors))), e)
		pause(time.Duration(random.IntN(40)) * time.Millisecond)
	}
}

// one makes a request of a random kind. It is not cut off at the load's end: what has
// begun ends as it would.
func (s *storm) one(random *rand.Rand, in *ingress, e *entry) {
	header := http.Header{"X-Sluice-Timeout": {limitDeadline.String()}}
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	stream := random.IntN(2) == 0
	switch kind := random.IntN(10); {
	case kind < 2: // a client that leaves
		s.book.mark(e, "leaves")
		leave := time.AfterFunc(time.Duration(random.IntN(200))*time.Millisecond, func() {
			s.book.leaves(e)
			cancel()
		})
		defer leave.Stop()
	case kind < 3: // a job
		e.deadline = time.Now().Add(time.Hour)
		s.book.mark(e, "job")
		header, stream = http.Header{"Prefer": {"respond-async"}}, false
	case kind < 4 && random.IntN(2) == 0:
		s.batch(random, in, e)
		return
	}
	status, text := s.send(ctx, in, e, stream, header)
	s.book.mu.Lock()
	e.status = status
	s.book.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.statuses[status]++
	var job struct{ ID string }
	if status == http.StatusAccepted && json.Unmarshal(text, &job) == nil {
		s.jobs[job.ID] = e.key
	}
}

// cancelJobs ends the jobs that wait for a window to open, and waits until all have ended.
func (s *storm) cancelJobs() {
	s.t.Helper()
	in := s.door(0)
	for id, h := range s.jobs {
		require.Eventually(s.t, func() bool {
			req, err := http.NewRequestWithContext(s.t.Context(), http.MethodDelete, in.base+"/v1/jobs/"+id, nil)
			if err != nil {
				return false
			}
			resp, err := in.as(h.secret).do(req, nil)
			return err == nil && drop(resp) < 500
		}, patience, pollEvery, "job %s is not cancelled", id)
	}
}

// mayhem kills processes and starts them again until the context ends. Its goroutine is
// the test's.
func (s *storm) mayhem(ctx context.Context, workers []*process) (kills int) {
	random := rand.New(rand.NewPCG(s.seed, 1<<32))
	for {
		timer := time.NewTimer(time.Duration(500+random.IntN(2500)) * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return kills
		case <-timer.C:
		}
		kills++
		if kills%5 == 3 {
			i := random.IntN(len(workers))
			s.t.Logf("%.2fs: worker %d is killed", time.Since(s.book.began).Seconds(), i)
			workers[i].kill()
			workers[i] = start(s.t, command{args: []string{"worker", "--provider", provider, "--config", s.file("worker.yaml")}})
			continue
		}
		i := random.IntN(len(s.doors))
		s.t.Logf("%.2fs: ingress %d is killed", time.Since(s.book.began).Seconds(), i)
		s.door(i).kill()
		s.killed = time.Now()
		s.open(i)
	}
}

const (
	limitLoad    = 28 * time.Second
	limitKeys    = 50
	limitClients = 40
	limitLease   = 15 * time.Second // after which a killed ingress has nothing in hand
)

// Four ingresses, fifty keys with random limits, random load and kills: no limit is broken,
// and once it is quiet nothing is in hand.
func TestNoLimitIsBrokenWhateverIsKilled(t *testing.T) {
	t.Parallel()
	seed := numberFrom(t, seedVariable, rand.Uint64())
	t.Logf("%s=%d", seedVariable, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	tenants := make(map[string]limits.Limits)
	for i := range 4 {
		tenants[fmt.Sprintf("team-%d", i)] = limits.Limits{RequestsPerMinute: 20 + random.Int64N(80), Concurrent: 2 + random.Int64N(5)}
	}
	r := newReplicas(t, 4, tenants, limits.Limits{RequestsPerMinute: 60 + random.Int64N(60), Concurrent: 4})
	workers := []*process{r.worker(r.door(0), 1), r.worker(r.door(0), 2)}
	s := &storm{replicas: r, seed: seed, keys: r.randomKeys(random, limitKeys), statuses: make(map[int]int), jobs: make(map[string]*holder)}

	ctx, cancel := context.WithTimeout(t.Context(), limitLoad)
	defer cancel()
	var clients sync.WaitGroup
	for n := range limitClients {
		clients.Go(func() { s.client(ctx, n) })
	}
	kills := s.mayhem(ctx, workers)
	clients.Wait()
	s.cancelJobs()
	s.endBatches()
	require.Empty(t, r.book.broken())
	orphaned := r.quiet(time.Until(r.killed.Add(limitLease)) + 15*time.Second)
	require.Empty(t, r.book.broken(), "what was left")
	r.requireCounted()
	spent := s.requireWithinMeans()

	reached, reachedMost := int64(0), 0
	for _, tally := range r.book.all() {
		reached += tally.reached
		if most := tally.limits.RequestsPerMinute; most > 0 && tally.reached == most {
			reachedMost++
		}
	}
	ran := r.book.ran("line")
	t.Logf("%d kills, statuses %v, %d jobs, %d batches of which %d lines ran, %d limits on requests reached, %s spent, %s orphaned", kills, s.statuses, len(s.jobs), len(s.batches), ran, reachedMost, spent, orphaned)
	require.Positive(t, spent)
	require.Greater(t, kills, 3)
	require.Greater(t, s.statuses[http.StatusOK], 100)
	require.Greater(t, s.statuses[http.StatusTooManyRequests], 100)
	require.Positive(t, ran, "no line of a batch")
	require.Positive(t, reachedMost, "no limit was ever reached")
	require.Zero(t, s.statuses[http.StatusUnauthorized])
}

// requireCounted has every request counted that has reached the upstream and was asked for
// in the minute before the count, and therefore admitted in it: nothing of that may be given
// back. How many are older, and may have left the window, is said. What is not bounded is
// told afterwards, and lost with a killed ingress.
func (r *replicas) requireCounted() {
	r.t.Helper()
	in := r.door(0)
	checked, older := int64(0), int64(0)
	for _, tally := range r.book.all() {
		if tally.limits.RequestsPerMinute == 0 {
			continue
		}
		s, err := r.scope(in, tally)
		require.NoError(r.t, err)
		all, reached := r.book.reachedOf(tally, time.Now().Add(-time.Minute))
		require.GreaterOrEqual(r.t, s.RequestsPerMinute.Used, reached, "%s: %s\n%s", tally, inJSON(r.t, s), r.book.those(tally))
		checked, older = checked+reached, older+all-reached
	}
	r.t.Logf("counted as they must be: %d requests of the last minute; %d are older and not checked", checked, older)
}

// requireWithinMeans has the ledger say of no key that its requests took more tokens or
// money than it may take, and returns what all of them cost. No tokens are counted twice of
// a request that a worker began and another one ended.
func (s *storm) requireWithinMeans() (all inference.Cost) {
	s.t.Helper()
	rows, err := ledger(s.t.Context(), s.db)
	require.NoError(s.t, err)
	type sum struct {
		tokens int64
		cost   inference.Cost
	}
	sums := make(map[string]sum)
	for i := range rows {
		r, has := &rows[i], sums[rows[i].KeyID]
		if r.CreatedAt.Sub(s.book.began) < time.Minute {
			has.tokens += r.Usage.PromptTokens + r.Usage.CompletionTokens
		}
		has.cost += promptPrice*inference.Cost(r.Usage.PromptTokens) + outputPrice*inference.Cost(r.Usage.CompletionTokens)
		sums[r.KeyID] = has
	}
	for _, h := range s.keys {
		l, took := &h.limits, sums[h.id]
		all += took.cost
		within := func(most, took int64, what string) {
			if most > 0 {
				require.LessOrEqual(s.t, took, most, "%s of %s", what, h.id)
			}
		}
		within(l.TokensPerMinute, took.tokens, "tokens")
		for _, most := range []inference.Cost{l.Budget.Day, l.Budget.Week, l.Budget.Month} {
			within(int64(most), int64(took.cost), "money")
		}
	}
	return all
}
