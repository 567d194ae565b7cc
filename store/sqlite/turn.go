package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// writer is the connection that writes, with its turn among the processes that do.
type writer struct {
	*sql.DB
	turn *turn
}

// Close gives up the turn, too.
func (w *writer) Close() error { return errors.Join(w.DB.Close(), w.turn.close()) }

// turn has writers of one file take turns. SQLite has no line for its lock: whoever comes at
// the right moment has it, and beside a process with one transaction after another that is
// always the same one. So who waits for the lock says so, and who would take it once more
// lets them go first. It is no lock: where the system has none that tell, or the folder
// cannot be opened, it is chance as before.
type turn struct {
	waits, asks *os.File // the database's folder, on which advisory locks stand; nil: nobody is asked

	mu    sync.Mutex
	count int // of this process's own that wait
}

func newTurn(path string) *turn {
	dir := filepath.Dir(path)
	waits, err := os.Open(dir)
	if err != nil {
		return &turn{}
	}
	asks, err := os.Open(dir)
	if err != nil {
		return &turn{waits: waits}
	}
	return &turn{waits: waits, asks: asks}
}

func (t *turn) close() error {
	var errs []error
	for _, f := range []*os.File{t.waits, t.asks} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Rhythm of waiting for the file's write lock.
const (
	busyAsk = 500 * time.Microsecond // between two looks
	letPass = 20 * time.Millisecond  // for those who wait
)

// whenFree does what needs the file's write lock, and does it again for as long as another
// process has it, busyTimeout at most. SQLite's own wait looks for the lock at growing
// intervals, up to a tenth of a second, and would seldom find it free.
func (t *turn) whenFree(ctx context.Context, do func() error) error {
	if t == nil {
		return do() // a reader
	}
	if t.othersWait() {
		rest(ctx, letPass)
	}
	said := false
	err := do()
	for began := time.Now(); busy(err) && time.Since(began) < busyTimeout && ctx.Err() == nil; err = do() {
		said = said || t.wait()
		rest(ctx, busyAsk)
	}
	if said {
		t.waitNoMore()
	}
	return err
}

// wait says that this process waits for the file, unless somebody asks at this moment.
func (t *turn) wait() (said bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count > 0 || t.say() {
		t.count++
		return true
	}
	return false
}

// waitNoMore takes back one wait.
func (t *turn) waitNoMore() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count--; t.count == 0 {
		t.unsay()
	}
}

// othersWait reports whether another process waits; while this one does, that is not known.
func (t *turn) othersWait() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.count == 0 && t.said()
}

func rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

const codeBusy = 5 // SQLITE_BUSY; its extended codes have more in their upper bytes

func busy(err error) bool {
	said, ok := errors.AsType[interface {
		error
		Code() int
	}](err)
	return ok && said.Code()&0xff == codeBusy
}
