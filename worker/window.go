package worker

import (
	"sync"
	"time"
)

// windowParts is how many parts a window moves on by.
const windowParts = 10

// window counts what ended well and what failed in the last while.
type window struct {
	span time.Duration // zero: since the last clear

	mu    sync.Mutex
	parts [windowParts]windowPart
}

type windowPart struct {
	nth        int64 // since the clock's zero
	ok, failed int
}

func (w *window) nth(now time.Time) int64 {
	if w.span <= 0 {
		return 0
	}
	return now.UnixNano() / max(int64(w.span)/windowParts, 1)
}

func (w *window) add(failed bool, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	nth := w.nth(now)
	p := &w.parts[nth%windowParts]
	if p.nth != nth {
		*p = windowPart{nth: nth}
	}
	if failed {
		p.failed++
	} else {
		p.ok++
	}
}

func (w *window) counts(now time.Time) (ok, failed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	nth := w.nth(now)
	for _, p := range w.parts {
		if nth-p.nth < windowParts {
			ok, failed = ok+p.ok, failed+p.failed
		}
	}
	return ok, failed
}

func (w *window) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.parts = [windowParts]windowPart{}
}
