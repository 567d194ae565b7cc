//go:build !linux

package e2e_test

import "syscall"

func endWithTests() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
