package e2e_test

import "syscall"

// endWithTests makes a child end when the test process does, even when that was
// killed, and keeps a terminal's Ctrl-C from reaching it.
func endWithTests() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
