//go:build unix

package sqlite

import (
	"errors"
	"syscall"
)

// wait says that this process waits for the file, unless somebody asks at this moment.
func (t *turn) wait() (said bool) {
	return t.waits != nil && syscall.Flock(int(t.waits.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil
}

func (t *turn) waitNoMore() { _ = syscall.Flock(int(t.waits.Fd()), syscall.LOCK_UN) }

// othersWait reports whether anybody has said so.
func (t *turn) othersWait() bool {
	if t.asks == nil {
		return false
	}
	err := syscall.Flock(int(t.asks.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		_ = syscall.Flock(int(t.asks.Fd()), syscall.LOCK_UN)
	}
	return errors.Is(err, syscall.EWOULDBLOCK)
}
