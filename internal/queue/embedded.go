package queue

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// EmbeddedOptions describe the NATS server that runs inside the process.
type EmbeddedOptions struct {
	Dir         string // where JetStream keeps its files
	MemoryBytes int64  // most memory that streams may take
	Logger      *slog.Logger
}

// Embedded is a NATS server inside the process. It opens no port: only connections
// of the same process reach it.
type Embedded struct{ srv *server.Server }

// embeddedReady bounds the wait for the server's start; recovery of large file
// streams is what takes time.
const embeddedReady = 60 * time.Second

// StartEmbedded starts a server and waits until it takes connections.
func StartEmbedded(o EmbeddedOptions) (*Embedded, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create queue directory: %w", err)
	}
	srv, err := server.NewServer(&server.Options{
		ServerName:         "sluice",
		DontListen:         true,
		JetStream:          true,
		StoreDir:           o.Dir,
		JetStreamMaxMemory: o.MemoryBytes,
		JetStreamMaxStore:  1 << 50, // streams carry their own bounds; do not also reserve them against today's free disk
		NoSigs:             true,    // the process handles its own signals
		NoSystemAccount:    true,
	})
	if err != nil {
		return nil, fmt.Errorf("configure embedded queue: %w", err)
	}
	srv.SetLoggerV2(natsLogger{o.Logger}, false, false, false)
	srv.Start()
	if !srv.ReadyForConnections(embeddedReady) {
		srv.Shutdown()
		return nil, errors.New("start embedded queue: not ready after " + embeddedReady.String() + "; is the data directory used by another process?")
	}
	if !srv.JetStreamEnabled() {
		srv.Shutdown()
		return nil, errors.New("start embedded queue: JetStream did not start; see the log above")
	}
	return &Embedded{srv: srv}, nil
}

// Close stops the server and waits until its files are written.
func (e *Embedded) Close() {
	e.srv.Shutdown()
	e.srv.WaitForShutdown()
}

// natsLogger passes the server's warnings on; its notices are of no use to whoever
// runs Sluice.
type natsLogger struct{ log *slog.Logger }

func (l natsLogger) Noticef(f string, v ...any) {
	l.log.Debug("embedded nats server", "message", fmt.Sprintf(f, v...))
}

func (l natsLogger) Warnf(f string, v ...any) {
	l.log.Warn("embedded nats server", "message", fmt.Sprintf(f, v...))
}

func (l natsLogger) Errorf(f string, v ...any) {
	l.log.Error("embedded nats server", "message", fmt.Sprintf(f, v...))
}

func (l natsLogger) Fatalf(f string, v ...any) {
	l.log.Error("embedded nats server", "message", fmt.Sprintf(f, v...))
}
func (l natsLogger) Debugf(string, ...any) {}
func (l natsLogger) Tracef(string, ...any) {}
