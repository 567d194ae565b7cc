package e2e_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// terminal opens a pseudo-terminal: what is written to user is typed, and what shows
// on the screen is read from it.
func terminal(t *testing.T) (user, screen *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = user.Close() })
	var number, unlock int32
	for request, argument := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlock, syscall.TIOCGPTN: &number} {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, user.Fd(), request, uintptr(unsafe.Pointer(argument)))
		require.Zero(t, errno)
	}
	screen, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	return user, screen
}

// TestMakeRunEndsCleanlyOnCtrlC types a Ctrl-C at a terminal in which make runs. The
// binary under test stands for the one that make would build.
func TestMakeRunEndsCleanlyOnCtrlC(t *testing.T) {
	t.Parallel()
	user, screen := terminal(t)
	cmd := exec.Command("make", "--no-print-directory", "-C", "../..", "-o", "build", "run", "BIN="+binary)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "OLLAMA_HOST=127.0.0.1:1", anyPort, "SLUICE_DATA_DIR=" + t.TempDir(), "GOCOVERDIR=" + os.Getenv(coverVariable)}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = screen, screen, screen
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, cmd.Start())
	require.NoError(t, screen.Close())
	var seen output
	hung := make(chan struct{})
	go func() {
		defer close(hung)
		_, _ = io.Copy(&seen, user) // it ends with the last process at the terminal
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // how it ended is looked at below
	}()
	t.Cleanup(func() {
		_ = user.Close() // the terminal goes, and all in it
		_ = cmd.Process.Kill()
		<-ended
		<-hung
	})

	require.Eventually(t, func() bool { return strings.Contains(seen.String(), "API key") }, startPatience, pollEvery, "no greeting")
	_, err := user.WriteString("\x03")
	require.NoError(t, err)
	select {
	case <-ended:
	case <-time.After(exitPatience):
		require.FailNow(t, "make does not end", seen.String())
	}
	<-hung
	require.Zero(t, cmd.ProcessState.ExitCode(), seen.String())
	require.Contains(t, seen.String(), `"stopped"`)
	require.NotContains(t, seen.String(), "***", "make complains of nothing")
	lines := strings.Split(strings.TrimSpace(seen.String()), "\n")
	require.Contains(t, lines[len(lines)-1], `"stopped"`, "nothing comes after the last word")
}
