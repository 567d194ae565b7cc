package testkit

import "syscall"

// endWithParent makes a child end when this process does, even when that was killed
// and could clean up nothing; and keeps a terminal's Ctrl-C from reaching the child
// before its owner has heard of it.
func endWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
