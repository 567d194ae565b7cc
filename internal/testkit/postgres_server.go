package testkit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// warden is the shell script that is the server's parent. It waits on its standard
// input, a pipe whose other end only the test process holds: when that process ends,
// in whatever way, the kernel closes the pipe, and the warden stops the server and
// removes its files. (A parent-death signal would be tied to one thread of the test
// process, and is known on Linux only.) The word "stop" stops the server and keeps
// its files. The server takes signals only once it has written its pid file, so the
// warden gives it a moment for that.
const warden = `
dir=$1; shift
"$@" </dev/null >>"$dir/log" 2>&1 &
server=$!
read -r word
[ -e "$dir/data/postmaster.pid" ] || sleep 1
if [ "$word" = stop ]; then kill -INT $server; else kill -QUIT $server; fi
wait $server
[ "$word" = stop ] || rm -rf "$dir"
`

const (
	startTimeout = time.Minute
	startPoll    = 10 * time.Millisecond
	portTries    = 10

	// Ports below the ranges from which systems take ports for outgoing connections,
	// so that nobody gets the server's while it is stopped.
	firstPort, lastPort = 20000, 32000
)

// errPortTaken says that another process came first to the port.
var errPortTaken = errors.New("port taken")

// postgresServer is a private server in a temporary folder.
type postgresServer struct {
	programs postgresPrograms
	dir      string // holds data/ and log
	port     int
	process  *exec.Cmd // the warden; nil while stopped
	lifeline *os.File  // the pipe that the warden waits on
}

// newPostgresServer makes a server in a new folder and starts it.
func newPostgresServer() (*postgresServer, error) {
	programs, err := findOrInstallPostgres()
	if err != nil {
		return nil, err
	}
	dir, err := programs.account.makeTempDir()
	if err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	s := &postgresServer{programs: programs, dir: dir}
	if err := s.init(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	for range portTries {
		s.port = firstPort + rand.IntN(lastPort-firstPort)
		if err = s.start(); !errors.Is(err, errPortTaken) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

func (s *postgresServer) url(database string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", s.port, database)
}

func (s *postgresServer) init() error {
	cmd := s.command(s.programs.initdb, "--pgdata", filepath.Join(s.dir, "data"), "--username", "postgres",
		"--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run initdb: %w: %s", err, lastLines(out))
	}
	return nil
}

// start starts the server and waits until it takes connections.
func (s *postgresServer) start() error {
	if s.process != nil {
		return errors.New("already started")
	}
	if err := portFree(s.port); err != nil {
		return err
	}
	end, err := s.launch()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(startPoll) {
		if s.ready() {
			return nil
		}
		log, err := s.logFrom(end)
		switch {
		case err != nil:
		case ended(log):
			err = fmt.Errorf("server ended: %s", lastLines(log))
			if bytes.Contains(log, []byte("could not bind")) {
				err = errPortTaken
			}
		case time.Now().After(deadline):
			err = fmt.Errorf("server not ready after %s: %s", startTimeout, lastLines(log))
		default:
			continue
		}
		return errors.Join(err, s.stop())
	}
}

// launch starts the warden, which starts the server. It returns how long the log
// was before.
func (s *postgresServer) launch() (logEnd int64, err error) {
	if info, err := os.Stat(filepath.Join(s.dir, "log")); err == nil {
		logEnd = info.Size()
	}
	// Nothing here outlives a test, so nothing needs to reach the disk.
	cmd := s.command("/bin/sh", "-c", warden, "postgres-warden", s.dir,
		s.programs.postgres, "-D", filepath.Join(s.dir, "data"), "-p", strconv.Itoa(s.port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
		"-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off",
		"-c", "max_connections=300", "-c", "logging_collector=off", "-c", "log_destination=stderr",
		"-c", "log_min_messages=warning")
	stdin, lifeline, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("make pipe: %w", err)
	}
	cmd.Stdin = stdin
	err = cmd.Start()
	if closeErr := stdin.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("start server: %w", err), lifeline.Close())
	}
	s.process, s.lifeline = cmd, lifeline
	return logEnd, nil
}

// ready reports whether the server says so itself: the eighth line of its pid file
// is its state, which pg_ctl reads too.
func (s *postgresServer) ready() bool {
	pidFile, err := os.ReadFile(filepath.Join(s.dir, "data", "postmaster.pid"))
	if err != nil {
		return false
	}
	lines := strings.Split(string(pidFile), "\n")
	return len(lines) > 7 && strings.TrimSpace(lines[7]) == "ready"
}

// ended reports whether a starting server's log tells its end. Clients that are there
// before it is ready are refused with words of the same weight.
func ended(log []byte) bool {
	for line := range bytes.Lines(log) {
		if bytes.Contains(line, []byte("FATAL:")) && !bytes.Contains(line, []byte("the database system is starting up")) {
			return true
		}
	}
	return false
}

// stop stops the server and keeps its data.
func (s *postgresServer) stop() error { return s.end("stop\n") }

// remove stops the server, if it runs, and removes its files.
func (s *postgresServer) remove() error {
	return errors.Join(s.end(""), os.RemoveAll(s.dir))
}

func (s *postgresServer) end(word string) error {
	if s.process == nil {
		return nil
	}
	_, err := io.WriteString(s.lifeline, word)
	err = errors.Join(err, s.lifeline.Close(), s.process.Wait())
	s.process, s.lifeline = nil, nil
	return err
}

// command returns a command that runs as the server's account, in a session of its
// own, so that an interrupt from the terminal reaches the tests and not the server.
func (s *postgresServer) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: s.programs.account.credential}
	return cmd
}

func (s *postgresServer) logFrom(offset int64) ([]byte, error) {
	f, err := os.Open(filepath.Join(s.dir, "log"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	const enough = 1 << 20
	return io.ReadAll(io.NewSectionReader(f, offset, enough))
}

func portFree(port int) error {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return errPortTaken
	}
	return l.Close()
}

// lastLines returns the end of a program's output, in one line.
func lastLines(out []byte) string {
	const enough = 500
	text := strings.Join(strings.Fields(string(out)), " ")
	return text[max(0, len(text)-enough):]
}
