package token

import (
	"context"
	"errors"
	"sync"
)

// askings are the readings of keys that tokens have made us do. They go on when those who
// asked are gone, and end with the verifier's Run.
type askings struct {
	mu      sync.Mutex
	over    bool
	cancels map[*source]context.CancelFunc // each reads once at a time
	running sync.WaitGroup
}

// read reads the source's keys, whatever becomes of ctx.
func (a *askings) read(ctx context.Context, s *source) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	a.mu.Lock()
	if a.over {
		a.mu.Unlock()
		return errors.New("the keys are not read any more: we are stopping")
	}
	if a.cancels == nil {
		a.cancels = make(map[*source]context.CancelFunc)
	}
	a.cancels[s] = cancel
	a.running.Add(1)
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.cancels, s)
		a.mu.Unlock()
		a.running.Done()
	}()
	return s.read(ctx)
}

// begin allows readings, and end ends those that there are and waits for them.
func (a *askings) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = false
}

func (a *askings) end() {
	a.mu.Lock()
	a.over = true
	for _, cancel := range a.cancels {
		cancel()
	}
	a.mu.Unlock()
	a.running.Wait()
}
