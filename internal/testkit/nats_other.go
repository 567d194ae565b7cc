//go:build !linux

package testkit

import "syscall"

// endWithParent has no counterpart of Linux's parent-death signal to set here: a
// killed test process leaves its children behind.
func endWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
