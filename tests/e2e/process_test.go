package e2e_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Bounds of what tests wait for. They are generous, because the machine may be busy
// with other tests; nothing is expected to take so long.
const (
	startPatience = 30 * time.Second
	exitPatience  = 45 * time.Second
	patience      = 30 * time.Second
	pollEvery     = 20 * time.Millisecond
)

// output is what a process writes, readable while it runs.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// process is one running sluice.
type process struct {
	t              testing.TB
	cmd            *exec.Cmd
	stdout, stderr output
	exited         chan struct{}
	code           int
}

// command describes a process to start.
type command struct {
	dir  string   // working directory; a fresh one if empty
	env  []string // beside the few variables that every process gets
	args []string
}

// start starts sluice. It is killed at the test's end, if it still runs; a failed
// test then shows what it logged.
func start(t testing.TB, c command) *process {
	t.Helper()
	if c.dir == "" {
		c.dir = t.TempDir()
	}
	p := &process{t: t, exited: make(chan struct{})}
	p.cmd = exec.Command(binary, c.args...)
	p.cmd.Dir = c.dir
	// Nothing of the machine's own providers may be found.
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir, "OLLAMA_HOST=127.0.0.1:1"}, c.env...)
	if dir := os.Getenv(coverVariable); dir != "" {
		p.cmd.Env = append(p.cmd.Env, "GOCOVERDIR="+dir)
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.SysProcAttr = endWithTests()
	require.NoError(t, p.cmd.Start(), "start sluice %v", c.args)
	go func() {
		defer close(p.exited)
		_ = p.cmd.Wait() // an end by signal is what many tests are about
		p.code = p.cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.exited
		if t.Failed() {
			t.Logf("sluice %s, stdout:\n%s\nstderr:\n%s", strings.Join(c.args, " "), p.stdout.String(), tail(p.stderr.String()))
		}
	})
	return p
}

func tail(s string) string {
	const most = 6 << 10
	return s[max(0, len(s)-most):]
}

// execute runs sluice to its end and returns its exit code and output.
func execute(t testing.TB, c command) (code int, stdout, stderr string) {
	t.Helper()
	p := start(t, c)
	code = p.wait()
	return code, p.stdout.String(), p.stderr.String()
}

// kill ends the process with SIGKILL and returns when it is gone.
func (p *process) kill() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Kill())
	<-p.exited
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(s))
}

// wait returns the exit code once the process has ended.
func (p *process) wait() int {
	p.t.Helper()
	limit := time.NewTimer(exitPatience)
	defer limit.Stop()
	select {
	case <-p.exited:
	case <-limit.C:
		require.FailNow(p.t, "process did not end", "after %s", exitPatience)
	}
	return p.code
}

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// address is where the process serves HTTP, once it does.
func (p *process) address() string {
	p.t.Helper()
	var address string
	p.eventually("serve HTTP", func() bool {
		for line := range strings.Lines(p.stderr.String()) {
			var entry struct {
				Msg     string `json:"msg"`
				Address string `json:"address"`
			}
			if json.Unmarshal([]byte(line), &entry) == nil && (entry.Msg == "serving" || entry.Msg == "serving health and metrics") {
				address = entry.Address
				return true
			}
		}
		return false
	})
	return address
}

// eventually waits until the condition holds, and gives up early when the process
// has ended.
func (p *process) eventually(what string, condition func() bool) {
	p.t.Helper()
	require.Eventually(p.t, func() bool { return condition() || !p.running() }, startPatience, pollEvery, "process did not %s", what)
	require.True(p.t, condition(), "process ended and did not %s", what)
}
