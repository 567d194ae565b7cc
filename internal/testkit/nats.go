// Package testkit gives tests the real things that Sluice stands on: a nats-server, a
// Postgres, and upstreams that follow a script. No program of Sluice imports it.
package testkit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	natsReadyTimeout = 20 * time.Second
	natsStopTimeout  = 10 * time.Second
	natsPollEvery    = 10 * time.Millisecond
	natsPortTries    = 8

	// Ports are taken from below the range that the kernel gives to outgoing
	// connections. While a killed server is down its clients keep dialling its port;
	// inside that range one of them could be given the very port as its own source,
	// connect to itself, and keep the server from coming back.
	natsFirstPort = 20000
	natsLastPort  = 32000
)

var errNATSRunning = errors.New("nats-server runs already")

// NATSServer is a nats-server process of its own: JetStream with a store directory,
// every other setting at its default, so that a message's payload ends at 1 MB. It
// can be killed and started again on the same port and store. Its methods are safe
// for concurrent use.
type NATSServer struct {
	binary string
	dir    string
	name   string
	port   int

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{} // closed once cmd is gone; nil while nothing was started
}

// StartNATS starts a nats-server for one test and ends it with the test. The
// binary is built from the module's own version of the server.
func StartNATS(t testing.TB) *NATSServer {
	t.Helper()
	server, err := NewNATSServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatalf("start nats-server: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Kill(); err != nil {
			t.Errorf("kill nats-server: %v", err)
		}
	})
	return server
}

// NewNATSServer builds nats-server where needed and starts it with its store and
// its log below dir. The caller ends it with Stop or Kill and removes dir.
func NewNATSServer(ctx context.Context, dir string) (*NATSServer, error) {
	binary, err := buildNATSServer(ctx)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		port, err := freeNATSPort()
		if err != nil {
			return nil, err
		}
		s := &NATSServer{
			binary: binary, dir: dir, port: port,
			name: fmt.Sprintf("testkit-%d-%08x", os.Getpid(), rand.Uint32()),
		}
		// Between the choice of a port and the server's bind somebody else can take it.
		if err = s.Start(); err == nil {
			return s, nil
		}
		if try == natsPortTries || ctx.Err() != nil {
			return nil, err
		}
	}
}

// URL is the address for clients. It stays the same over Kill and Start.
func (s *NATSServer) URL() string { return "nats://" + s.address() }

// PID is the running process's id, or zero when none runs.
func (s *NATSServer) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return 0
	}
	return s.cmd.Process.Pid
}

// Start starts the server, again on the same port and store after Kill or Stop, and
// returns once JetStream is ready.
func (s *NATSServer) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running() {
		return errNATSRunning
	}
	log, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open nats-server log: %w", err)
	}
	defer func() { _ = log.Close() }() // the process holds a descriptor of its own
	cmd := exec.Command(s.binary, "-a", "127.0.0.1", "-p", strconv.Itoa(s.port),
		"-n", s.name, "-js", "-sd", filepath.Join(s.dir, "jetstream"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = endWithParent()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start nats-server: %w", err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait() // an end by signal is what the callers ask for
	}()
	s.cmd, s.exited = cmd, exited
	if err := s.waitReady(); err != nil {
		return errors.Join(fmt.Errorf("start nats-server on port %d: %w\n%s", s.port, err, s.logTail()),
			s.end(syscall.SIGKILL))
	}
	return nil
}

// Kill ends the server with SIGKILL, as a crash would, and returns once it is gone.
// It does nothing when none runs.
func (s *NATSServer) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end(syscall.SIGKILL)
}

// Stop asks the server to shut down and returns once it is gone; after ten seconds
// it is killed.
func (s *NATSServer) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end(syscall.SIGTERM)
}

func (s *NATSServer) address() string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port))
}

func (s *NATSServer) logPath() string { return filepath.Join(s.dir, "nats-server.log") }

func (s *NATSServer) running() bool {
	if s.exited == nil {
		return false
	}
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

func (s *NATSServer) end(signal syscall.Signal) error {
	if !s.running() {
		return nil
	}
	if err := s.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal nats-server: %w", err)
	}
	timer := time.NewTimer(natsStopTimeout)
	defer timer.Stop()
	select {
	case <-s.exited:
		return nil
	case <-timer.C:
	}
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill nats-server: %w", err)
	}
	<-s.exited
	return nil
}

func (s *NATSServer) waitReady() error {
	deadline := time.NewTimer(natsReadyTimeout)
	defer deadline.Stop()
	poll := time.NewTicker(natsPollEvery)
	defer poll.Stop()
	for {
		select {
		case <-s.exited:
			return errors.New("it ended by itself")
		case <-deadline.C:
			return fmt.Errorf("not ready after %s", natsReadyTimeout)
		case <-poll.C:
			if s.answers() {
				return nil
			}
		}
	}
}

// answers reports whether this very server greets a client, which it does once
// JetStream has recovered its store. The name tells it from a stranger that holds the
// port.
func (s *NATSServer) answers() bool {
	conn, err := net.DialTimeout("tcp", s.address(), time.Second)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return false
	}
	info, err := bufio.NewReaderSize(conn, 32<<10).ReadString('\n')
	return err == nil && strings.Contains(info, `"server_name":"`+s.name+`"`)
}

func (s *NATSServer) logTail() []byte {
	log, err := os.ReadFile(s.logPath())
	if err != nil {
		return nil
	}
	const most = 2 << 10
	return bytes.TrimSpace(log[max(0, len(log)-most):])
}

func freeNATSPort() (int, error) {
	for range 100 {
		port := natsFirstPort + rand.IntN(natsLastPort-natsFirstPort)
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		if err := listener.Close(); err != nil {
			return 0, fmt.Errorf("free port %d: %w", port, err)
		}
		return port, nil
	}
	return 0, errors.New("find a free port: every one tried was taken")
}
