package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	stopTimeout  = 15 * time.Second
	readyTimeout = 20 * time.Second

	// ticksPerSecond is the unit of CPU time in /proc, which Linux keeps at 100.
	ticksPerSecond = 100
)

// process is a child of the harness.
type process struct {
	name   string
	log    string // path of what it wrote
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // how it ended; to be read after exited
}

// startProcess starts a child that writes its log to dir. Its stdout goes to out, or
// into the log where out is nil. It gets no more of the environment than it needs: a
// provider's key in it would change what Sluice serves.
func startProcess(dir, name string, out io.Writer, in io.Reader, binary string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), exited: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("create log: %w", err)
	}
	defer func() { _ = log.Close() }() // the child holds a descriptor of its own
	p.cmd = exec.Command(binary, args...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = in, log, log
	if out != nil {
		p.cmd.Stdout = out
	}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "GOMAXPROCS", "GOGC", "GOMEMLIMIT"} {
		if value, set := os.LookupEnv(name); set {
			p.cmd.Env = append(p.cmd.Env, name+"="+value)
		}
	}
	p.cmd.SysProcAttr = endWithParent()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.exited)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

// stop asks the process to end and waits for it; one that does not is killed, and
// that is an error.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		<-p.exited // it ended by itself
		return nil
	}
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-p.exited:
		return nil
	case <-timer.C:
		p.kill()
		return fmt.Errorf("stop %s: still there %s after SIGTERM", p.name, stopTimeout)
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended meanwhile
	<-p.exited
}

// failed tells why the process is of no use, with the end of its log.
func (p *process) failed(why string) error {
	log, err := os.ReadFile(p.log)
	if err != nil {
		return fmt.Errorf("%s %s", p.name, why)
	}
	const most = 2 << 10
	return fmt.Errorf("%s %s; its log ends:\n%s", p.name, why, bytes.TrimSpace(log[max(0, len(log)-most):]))
}

// startChild starts this same binary with a subcommand and waits for the line in
// which it tells its addresses.
func startChild(ctx context.Context, dir, name string, args ...string) (*process, []string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("find own binary: %w", err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	defer func() { _ = read.Close() }()
	p, err := startProcess(dir, name, write, nil, self, args...)
	_ = write.Close()
	if err != nil {
		return nil, nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = read.SetReadDeadline(time.Now()) })()
	line := make([]byte, 256)
	_ = read.SetReadDeadline(time.Now().Add(readyTimeout))
	n, err := read.Read(line) // the line is one small write, so it comes in one piece
	if err != nil {
		p.kill()
		return nil, nil, errors.Join(p.failed("printed no address"), ctx.Err())
	}
	return p, strings.Fields(string(line[:n])), nil
}

// usage is what some processes have used so far, in total.
type usage struct {
	cpu  time.Duration
	rss  float64 // bytes
	peak float64 // bytes, the most so far
}

func readUsage(pids []int) (usage, error) {
	var sum usage
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return usage{}, fmt.Errorf("read CPU time: %w", err)
		}
		cpu, err := parseCPU(stat)
		if err != nil {
			return usage{}, err
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return usage{}, fmt.Errorf("read memory: %w", err)
		}
		sum.cpu += cpu
		sum.rss += statusBytes(status, "VmRSS:")
		sum.peak += statusBytes(status, "VmHWM:")
	}
	return sum, nil
}

// parseCPU reads user and system time from /proc/PID/stat (proc_pid_stat(5)). The
// command in its parentheses may hold anything, so fields count from the last one.
func parseCPU(stat []byte) (time.Duration, error) {
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const user, system = 11, 12
	if len(fields) <= system {
		return 0, errors.New("read CPU time: /proc's stat is too short")
	}
	var ticks int64
	for _, field := range fields[user : system+1] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
}

func statusBytes(status []byte, name string) float64 {
	_, rest, _ := bytes.Cut(status, []byte(name))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	kilobytes, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(string(line)), " kB"), 64)
	if err != nil {
		return 0
	}
	return kilobytes * 1024
}
