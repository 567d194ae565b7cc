package worker

import (
	"math"
	"sync"
	"time"
)

// pace follows how fast a model answers: the time to the first token of streamed
// answers, and of plain ones the time for a token, since these take as long as they are.
type pace struct {
	mu      sync.Mutex
	stream  average
	plain   average // of the time to the whole answer, for want of streams
	perUnit average
}

// answerOverhead stands for what a plain answer takes beside its tokens, in tokens.
const answerOverhead = 20

// streamed takes the time to a streamed answer's first token.
func (p *pace) streamed(first time.Duration, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stream.add(first.Seconds(), now)
}

// answered takes the time to a plain answer of so many tokens; none when not known.
func (p *pace) answered(took time.Duration, tokens int64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plain.add(took.Seconds(), now)
	p.perUnit.add(took.Seconds()/float64(tokens+answerOverhead), now)
}

// firstToken is the moving average of the time to the first token in seconds, or to a
// plain answer where nothing was streamed; zero when nothing is known.
func (p *pace) firstToken() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stream.n > 0 {
		return p.stream.short
	}
	return p.plain.short
}

// slowdown is how many times slower than usual answers are, and how much that counts.
func (p *pace) slowdown(now time.Time) (times, weight float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range [...]*average{&p.stream, &p.perUnit} {
		if s, ok := a.slowdown(now); ok {
			times, weight = times+s*a.recent, weight+a.recent
		}
	}
	if weight == 0 {
		return 0, 0
	}
	return times / weight, weight
}

// average is a moving average of late beside a usual value.
type average struct {
	n      int
	short  float64
	usual  float64
	recent float64 // about how many samples there were of late
	at     time.Time
}

const (
	shortWeight = 0.1              // of the newest sample
	usualUp     = 45 * time.Second // in which most of a lasting change to slower answers becomes usual
	usualDown   = 0.05             // of a faster sample
	paceLeast   = 20               // samples before anything is said
	paceForgets = 5 * time.Second  // in which the count of late samples falls to a third
	paceStale   = 15 * time.Second
)

func (a *average) add(v float64, now time.Time) {
	if a.n == 0 {
		a.short, a.usual = v, v
	}
	weight := max(shortWeight, 1/float64(a.n+1))
	a.short += weight * (v - a.short)
	switch {
	case a.n < paceLeast:
		a.usual = a.short
	case v < a.usual:
		a.usual += usualDown * (v - a.usual)
	default:
		a.usual += (1 - math.Exp(-min(now.Sub(a.at), time.Second).Seconds()/usualUp.Seconds())) * (v - a.usual)
	}
	a.recent = a.recent*math.Exp(-now.Sub(a.at).Seconds()/paceForgets.Seconds()) + 1
	a.n++
	a.at = now
}

func (a *average) slowdown(now time.Time) (float64, bool) {
	if a.n <= paceLeast || a.usual <= 0 || now.Sub(a.at) > paceStale {
		return 0, false
	}
	return a.short / a.usual, true
}
