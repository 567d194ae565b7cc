package e2e_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/testkit"
)

// book is what reaches the upstream, by whose limits it counts for. It knows nothing of
// what any ingress counts.
type book struct {
	mu      sync.Mutex
	byName  map[string]*entry
	tallies map[string]*tally
	list    []*tally
	began   time.Time     // of the first request
	gate    chan struct{} // calls wait for it; nil: they do not
	faults  []string
	worst   *tally // of the first fault of a limit
}

// entry is one request of a client's, however often it reaches the upstream.
type entry struct {
	name     string
	key      *holder
	model    string
	most     int           // tokens that the answer may have
	gives    int           // tokens that it has
	lasts    time.Duration // at the upstream
	tallies  []*tally
	asked    time.Time // before it was sent
	deadline time.Time

	calls   int // at the upstream now
	reached bool
	left    bool // its client has gone: it may end at any moment
	used    bool // its tokens are counted

	kind   string        // as a failure is told with
	first  time.Duration // since the beginning: when it first reached the upstream
	status int
}

// tally is what is counted for one scope.
type tally struct {
	holder  string // as an operator asks for it
	model   string // empty: all
	limits  limits.Limits
	reached int64 // requests
	tokens  int64 // of answers that the upstream has given whole
	cost    inference.Cost
	now     map[*entry]bool
}

func (t *tally) String() string { return strings.TrimSuffix(t.holder+" "+t.model, " ") }

func newBook() *book { return &book{byName: make(map[string]*entry), tallies: make(map[string]*tally)} }

func (b *book) tally(holder, model string, own limits.Limits) *tally {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.tallies[holder+" "+model]
	if t == nil {
		t = &tally{holder: holder, model: model, limits: own, now: make(map[*entry]bool)}
		b.tallies[holder+" "+model] = t
		// Only what has a limit of its own is a scope.
		own.Models, own.OnLimit = nil, ""
		if !own.IsZero() {
			b.list = append(b.list, t)
		}
	}
	return t
}

func (b *book) all() []*tally {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]*tally{}, b.list...)
}

// expect notes a request before it is made.
func (b *book) expect(e *entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.began.IsZero() {
		b.began = time.Now()
	}
	b.byName[e.name] = e
}

// mark notes of what kind a request is.
func (b *book) mark(e *entry, kind string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e.kind = kind
}

// leaves notes that a request's client is about to go away.
func (b *book) leaves(e *entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e.left = true
}

// hold has all calls wait; release ends it.
func (b *book) hold() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gate = make(chan struct{})
}

func (b *book) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.gate)
	b.gate = nil
}

func (b *book) running(t *tally) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(t.now)
}

// serve answers a call of the upstream.
func (b *book) serve(call *testkit.Call) {
	name, _, _ := strings.Cut(prompt(call), " ")
	e, gate := b.arrive(name)
	if e == nil {
		call.Fail(500, "nobody has asked for "+name)
		return
	}
	// What is settled is given free after the answer's last byte at the earliest.
	if gate != nil && !call.Wait(gate) || !call.Pause(e.lasts) {
		b.end(e, false)
		return
	}
	b.end(e, true)
	if !call.Streamed() {
		call.JSON(200, testkit.Completion(call.Model(), "done", promptSize, e.gives))
		return
	}
	call.Delta("done")
	call.Finish("stop")
	call.Usage(promptSize, e.gives)
	call.Done()
}

// arrive counts a call, and what is at the upstream with it.
func (b *book) arrive(name string) (*entry, chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.byName[name]
	if e == nil {
		b.faults = append(b.faults, "nobody asked for "+strconv.Quote(name))
		return nil, nil
	}
	e.calls++
	for _, t := range e.tallies {
		// The windows slide: only in the first minute it is sure that all of them count.
		if !e.reached && time.Since(b.began) < time.Minute {
			t.reached++
			if most := t.limits.RequestsPerMinute; most > 0 && t.reached > most {
				b.fault(t, e, "request %d of %d in a minute", t.reached, most)
			}
		}
		t.now[e] = true
		running := 0
		for other := range t.now {
			if !other.left && time.Now().Before(other.deadline) {
				running++
			}
		}
		if most := int(t.limits.Concurrent); most > 0 && running > most {
			b.fault(t, e, "%d at once, more than %d", running, most)
		}
	}
	if !e.reached {
		e.reached, e.first = true, time.Since(b.began)
	}
	return e, b.gate
}

// fault notes that a limit is broken. The caller holds mu.
func (b *book) fault(t *tally, e *entry, format string, args ...any) {
	b.faults = append(b.faults, fmt.Sprintf("%6.2fs %s: %s with %s", time.Since(b.began).Seconds(), t, fmt.Sprintf(format, args...), e.name))
	if b.worst == nil {
		b.worst = t
	}
}

// end counts what a call has taken that is answered.
func (b *book) end(e *entry, answered bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e.calls--
	tokens, cost := int64(promptSize+e.gives), promptSize*promptPrice+inference.Cost(e.gives)*outputPrice
	for _, t := range e.tallies {
		if e.calls == 0 {
			delete(t.now, e)
		}
		if !answered || e.used {
			continue
		}
		t.cost += cost
		if time.Since(b.began) < time.Minute {
			t.tokens += tokens
		}
	}
	e.used = e.used || answered
}

// ran returns how many requests of the kind have reached the upstream.
func (b *book) ran(kind string) (many int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.byName {
		if e.kind == kind && e.reached {
			many++
		}
	}
	return many
}

// reachedOf returns how many requests of the tally have reached the upstream, and how many
// of them were not asked for before the time.
func (b *book) reachedOf(t *tally, since time.Time) (all, later int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.byName {
		if !e.reached || !slices.Contains(e.tallies, t) {
			continue
		}
		all++
		if !e.asked.Before(since) {
			later++
		}
	}
	return all, later
}

// those returns the requests of the tally that have reached the upstream, one in each line.
func (b *book) those(t *tally) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var lines []string
	for _, e := range b.byName {
		if e.reached && slices.Contains(e.tallies, t) {
			lines = append(lines, fmt.Sprintf("%6.2fs %s: %s, left %t, answered %t, status %d, for %s", e.first.Seconds(), e.name, e.kind, e.left, e.used, e.status, e.lasts))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (b *book) broken() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	said := append([]string{}, b.faults...)
	b.mu.Unlock()
	defer b.mu.Lock()
	if b.worst != nil {
		said = append(said, b.those(b.worst))
	}
	return said
}
