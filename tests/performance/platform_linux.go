package main

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sleepUntil returns at t, late by some microseconds at most. The runtime's own
// timers are a millisecond coarse while a process is idle, which is more than what is
// measured here. The caller has locked its goroutine to the thread.
func sleepUntil(t time.Time) {
	for {
		left := time.Until(t)
		if left <= 0 {
			return
		}
		// The runtime's signals may cut the sleep short; what is left is slept again.
		rest := unix.NsecToTimespec(int64(left))
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &rest, nil)
	}
}

// sharpenTimers takes the kernel's usual 50 µs of slack from this thread's sleeps.
// Where that is refused the sleeps are coarser and nothing else changes.
func sharpenTimers() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) }

// endWithParent makes a child end when the harness does, even when that is killed;
// and leaves it to the harness to end its children after Ctrl-C.
func endWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
