package limits

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

// witness writes down what was admitted to one scope, and checks each limit by that alone.
type witness struct {
	scope  Scope
	mu     sync.Mutex
	taken  []*admitted
	count  int
	broken string
}

// admitted is a request that a limiter let pass.
type admitted struct {
	at      time.Time
	tokens  int64
	cost    int64
	running bool
	queued  bool
	void    bool // it took nothing
}

// admit notes a request that was admitted just now. It is called at the time at which
// Reserve returned.
func (w *witness) admit(d Demand) *admitted {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	a := &admitted{at: now, tokens: d.Tokens, cost: int64(d.Cost), running: true, queued: d.Queued}
	w.taken = append(w.taken, a)
	if len(w.taken) > 500 && w.scope.Limits.Budget == (Budget{}) {
		w.taken = slices.DeleteFunc(w.taken, func(o *admitted) bool { return !o.running && now.Sub(o.at) > time.Minute })
	}
	w.count++
	var requests, tokens, concurrent, queued, money int64
	for _, o := range w.taken {
		if o.running {
			concurrent++
		}
		if o.running && o.queued {
			queued++
		}
		if o.void {
			continue
		}
		if now.Sub(o.at) < time.Minute {
			requests, tokens = requests+1, tokens+o.tokens
		}
		if o.at.UTC().YearDay() == now.UTC().YearDay() {
			money += o.cost
		}
	}
	l := w.scope.Limits
	for _, c := range []struct {
		name      string
		most, has int64
	}{
		{"requests", l.RequestsPerMinute, requests},
		{"tokens", l.TokensPerMinute, tokens},
		{"concurrent", l.Concurrent, concurrent},
		{"queued", l.Queued, queued},
		{"budget", int64(l.Budget.Day), money},
	} {
		if c.most > 0 && c.has > c.most && w.broken == "" {
			w.broken = fmt.Sprintf("%s: %s %d of %d at %s", w.scope.ID, c.name, c.has, c.most, now)
		}
	}
	return a
}

func (w *witness) settle(a *admitted, tokens, cost int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a.running, a.tokens, a.cost = false, tokens, cost
}

func (w *witness) started(a *admitted) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a.queued = false
}

func (w *witness) release(a *admitted) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a.running, a.void = false, true
}

// spent is the ledger: what ended, and what runs at what it may cost.
func (w *witness) spent(since time.Time) inference.Cost {
	w.mu.Lock()
	defer w.mu.Unlock()
	var sum int64
	for _, a := range w.taken {
		if !a.void && !a.at.Before(since) {
			sum += a.cost
		}
	}
	return inference.Cost(sum)
}

// process is a limiter that random requests go to, until it is killed or stopped.
type process struct {
	name  string
	l     *Limiter
	way   *reach
	stop  func()
	dead  chan struct{}
	stops bool         // rather than being killed; said before it is dead
	hands atomic.Int64 // requests that it has in hand

	living func() *Limiter // another one, which hears of calls that have ended
}

// toldFor is how long a call surely takes to be told of, so that it stays when its process
// is killed.
const toldFor = 3 * time.Second

// load sends random requests until the context ends. Those of a killed process that have no
// end are over then, unheard of. The others go on, and mostly it is heard when they end.
func (p *process) load(ctx context.Context, all []*witness, random *rand.Rand) {
	var running sync.WaitGroup
	defer running.Wait()
	for ctx.Err() == nil {
		w := all[random.IntN(len(all))]
		d := Demand{Scopes: []Scope{w.scope}, Tokens: random.Int64N(50), Cost: inference.Cost(random.Int64N(20)), Queued: random.IntN(2) == 0}
		burst := 1
		if random.IntN(20) == 0 {
			burst = random.IntN(40)
		}
		for range burst {
			seed := random.Uint64()
			running.Go(func() { p.one(ctx, w, d, rand.New(rand.NewPCG(seed, seed))) })
		}
		pause(ctx, time.Duration(random.Int64N(int64(80*time.Millisecond))))
	}
}

func (p *process) one(ctx context.Context, w *witness, d Demand, random *rand.Rand) {
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	if random.IntN(10) == 0 {
		defer time.AfterFunc(time.Duration(random.Int64N(int64(20*time.Millisecond))), cancel).Stop()
	}
	longest := 2 * time.Second
	if random.IntN(30) == 0 {
		longest = 3 * holderFor
	}
	if random.IntN(2) == 0 {
		d.Ends = time.Now().Add(longest + time.Second)
	}
	p.hands.Add(1)
	r, err := p.l.Reserve(asking, d)
	if err != nil {
		p.hands.Add(-1)
		return
	}
	a := w.admit(d)
	over := time.After(time.Duration(random.Int64N(int64(longest))))
	select {
	case <-over:
	case <-p.dead:
		p.outlived(w, d, a, r, over, random)
		return
	}
	defer p.hands.Add(-1)
	if random.IntN(2) == 0 {
		w.started(a)
		r.Started()
	}
	if random.IntN(5) == 0 {
		w.release(a)
		r.Release()
		return
	}
	tokens, cost := random.Int64N(d.Tokens+1), random.Int64N(int64(d.Cost)+1)
	w.settle(a, tokens, cost)
	r.Settle(tokens, inference.Cost(cost))
}

// outlived is what becomes of a request whose process is gone.
func (p *process) outlived(w *witness, d Demand, a *admitted, r Reservation, over <-chan time.Time, random *rand.Rand) {
	goesOn := !d.Ends.IsZero() && time.Since(a.at) >= toldFor
	if p.stops && goesOn {
		r.Abandon()
	} else if p.stops {
		r.Settle(a.tokens, inference.Cost(a.cost))
	}
	p.hands.Add(-1)
	w.started(a)
	if goesOn {
		<-over
	}
	w.settle(a, a.tokens, a.cost)
	if goesOn && random.IntN(4) > 0 {
		p.living().Ended(p.name, d.Scopes)
	}
}

func TestNoLimitIsEverBrokenWhateverIsKilled(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { loadAndKill(t, rand.New(rand.NewPCG(seed, 1)), seed%2 == 1) })
		})
	}
}

func loadAndKill(t *testing.T, random *rand.Rand, faulty bool) {
	t.Helper()
	time.Sleep(24*time.Hour - time.Minute) // a day ends on the way
	s := newShelf()
	all := []*witness{
		{scope: Scope{ID: "requests", Limits: Limits{RequestsPerMinute: 60}}},
		{scope: Scope{ID: "many requests", Limits: Limits{RequestsPerMinute: 3000}}},
		{scope: Scope{ID: "tokens", Limits: Limits{TokensPerMinute: 2000}}},
		{scope: Scope{ID: "both", Limits: Limits{RequestsPerMinute: 200, TokensPerMinute: 3000, Concurrent: 30}}},
		{scope: Scope{ID: "concurrent", Limits: Limits{Concurrent: 5}}},
		{scope: Scope{ID: "queued", Limits: Limits{Queued: 4, Concurrent: 9}}},
		{scope: Scope{ID: "budget", Limits: Limits{Budget: Budget{Day: 5000}}}},
		{scope: Scope{ID: "small budget", Limits: Limits{Budget: Budget{Day: 100}}}},
	}
	ledger := func(_ context.Context, scope Scope, since time.Time) (inference.Cost, error) {
		for _, w := range all {
			if w.scope.ID == scope.ID {
				return w.spent(since), nil
			}
		}
		return 0, errors.New("no such scope")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var loads sync.WaitGroup
	var latest atomic.Pointer[process]
	begun := 0
	begin := func() *process {
		begun++
		p := &process{name: fmt.Sprint("process-", begun), way: newReach(s), dead: make(chan struct{}), living: func() *Limiter { return latest.Load().l }}
		p.way.delay = time.Duration(random.Int64N(int64(8 * time.Millisecond)))
		if faulty {
			p.way.faults.Store(2)
		}
		p.l, p.stop = run(t, Options{Counters: p.way, Spent: ledger, Logger: slog.New(slog.DiscardHandler), Ingress: p.name})
		latest.Store(p)
		seed := random.Uint64()
		loads.Go(func() {
			living, end := context.WithCancel(ctx)
			defer end()
			go func() {
				select {
				case <-p.dead:
				case <-living.Done():
				}
				end()
			}()
			p.load(living, all, rand.New(rand.NewPCG(seed, 2)))
		})
		return p
	}
	four := []*process{begin(), begin(), begin(), begin()}
	for ctx.Err() == nil {
		pause(ctx, time.Duration(random.Int64N(int64(30*time.Second))))
		i := random.IntN(len(four))
		gone := four[i]
		if gone.stops = random.IntN(3) == 0; !gone.stops {
			close(gone.way.cut)
		}
		close(gone.dead)
		four[i] = begin()
		if gone.stops {
			for gone.hands.Load() > 0 {
				time.Sleep(time.Millisecond)
			}
			gone.stop()
		}
	}
	loads.Wait()
	for _, p := range four {
		p.way.faults.Store(0)
	}
	total := 0
	for _, w := range all {
		w.mu.Lock()
		require.Empty(t, w.broken)
		require.NotZero(t, w.count, w.scope.ID)
		total += w.count
		w.mu.Unlock()
	}
	t.Logf("%d requests admitted", total)
	time.Sleep(moneyGrace + 2*time.Minute)
	for _, p := range four {
		require.Zero(t, p.l.Scopes())
	}
	for _, w := range all {
		begin := four[0].l
		if s.record(t, w.scope.ID) == nil {
			continue
		}
		// What a killed process left is dropped by whoever comes next.
		r, err := begin.Reserve(t.Context(), Demand{Scopes: []Scope{w.scope}})
		if err == nil {
			r.Release()
		}
		time.Sleep(2*time.Minute + time.Second)
		rec := s.record(t, w.scope.ID)
		if rec != nil {
			require.Empty(t, rec.entries, w.scope.ID)
			require.Empty(t, rec.holders, w.scope.ID)
			require.NotZero(t, w.scope.Limits.Budget, w.scope.ID)
		}
	}
}
