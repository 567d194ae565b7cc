package testkit

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// Main is the TestMain of a package that uses Postgres or NATS: it runs the tests, stops
// the shared server, and fails the package if a goroutine is left behind.
//
//	func TestMain(m *testing.M) { testkit.Main(m) }
//
// A package whose tests end without it, by a panic or by kill -9, leaves no server
// behind either; only its end is not waited for.
func Main(m *testing.M, opts ...goleak.Option) { os.Exit(Run(m, opts...)) }

// Run is Main for a TestMain that has something of its own to clean up: it returns
// the exit code.
func Run(m *testing.M, opts ...goleak.Option) int {
	code := m.Run()
	if err := stopShared(); err != nil {
		fmt.Fprintln(os.Stderr, "testkit: stop Postgres server:", err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := goleak.Find(append(opts, putLeak)...); err != nil {
			fmt.Fprintln(os.Stderr, "testkit: goroutines left behind:", err)
			code = 1
		}
	}
	return code
}

// putLeak is a goroutine of the client library's own (nats.go 1.55): an object store's
// Put starts it and forgets it again, and where Put has ended before it ran for the first
// time, it waits for ever.
var putLeak = goleak.IgnoreTopFunction("github.com/nats-io/nats.go/jetstream.(*jetStream).resetPendingAcksOnReconnect")
