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
		if err := goleak.Find(append(opts, knownLeaks...)...); err != nil {
			fmt.Fprintln(os.Stderr, "testkit: goroutines left behind:", err)
			code = 1
		}
	}
	return code
}

// knownLeaks are goroutines that the libraries leave behind by themselves. They hide none
// of ours: a server or a connection that is not closed leaves others beside them.
var knownLeaks = []goleak.Option{
	// nats.go 1.55: an object store's Put starts it and forgets it again, and where Put has
	// ended before it ran for the first time, it waits for ever.
	goleak.IgnoreTopFunction("github.com/nats-io/nats.go/jetstream.(*jetStream).resetPendingAcksOnReconnect"),
	// nats-server 2.15: a stream that is being created while the server shuts down is
	// not among those that it stops.
	goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*fileStore).flushStreamStateLoop"),
	goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"),
}
