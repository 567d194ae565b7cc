//go:build unix

package sqlite

import (
	"errors"
	"syscall"
)

// say says that somebody waits here, unless somebody asks at this moment.
func (t *turn) say() bool {
	return t.waits != nil && syscall.Flock(int(t.waits.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil
}

func (t *turn) unsay() { _ = syscall.Flock(int(t.waits.Fd()), syscall.LOCK_UN) }

// said reports whether anybody has said so.
func (t *turn) said() bool {
	if t.asks == nil {
		return false
	}
	err := syscall.Flock(int(t.asks.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		_ = syscall.Flock(int(t.asks.Fd()), syscall.LOCK_UN)
	}
	return errors.Is(err, syscall.EWOULDBLOCK)
}
