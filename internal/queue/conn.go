package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Options say how to reach NATS.
type Options struct {
	Name     string    // shown in the server's list of connections
	Embedded *Embedded // the server of this process; the fields below are for an external one

	URL             string // one or several, separated by commas
	CredentialsFile string
	User, Password  string
	Token           string
	CAFile          string
	CertFile        string
	KeyFile         string

	Limits Limits
	Logger *slog.Logger
}

// Conn is one role's connection to NATS. It reconnects for ever; whoever must act
// after that registers with OnReconnect.
type Conn struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	blobs  *blobs
	files  files
	limits Limits
	log    *slog.Logger

	mu          sync.Mutex
	onReconnect []func()

	hubs   hubs
	goneAt atomic.Pointer[time.Time] // when the connection was lost; nil while there is one
}

// Bounds of the connection.
const (
	reconnectBuffer = 32 << 20 // what is published while disconnected and sent afterwards
	apiTimeout      = 5 * time.Second
	pendingMessages = 1 << 20 // per subscription, before messages are dropped
	pendingBytes    = 512 << 20
)

// Connect opens the connection. An external server that cannot be reached yet is no
// error: the connection keeps trying, and Ready tells.
func Connect(o Options) (*Conn, error) {
	c := &Conn{limits: o.Limits, log: o.Logger}
	c.gone()
	opts := []nats.Option{
		nats.Name(o.Name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(100 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 200*time.Millisecond),
		nats.ReconnectBufSize(reconnectBuffer),
		nats.RetryOnFailedConnect(true),
		nats.IgnoreAuthErrorAbort(),
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.ConnectHandler(c.reconnected),
		nats.ReconnectHandler(c.reconnected),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			c.gone()
			if err != nil {
				c.log.Warn("disconnected from nats", "error", err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			c.log.Error("nats error", "error", err, "subject", subject)
		}),
	}
	opts, url, err := o.target(opts)
	if err != nil {
		return nil, err
	}
	if c.nc, err = nats.Connect(url, opts...); err != nil {
		return nil, fmt.Errorf("connect to nats: %w", err)
	}
	if c.js, err = jetstream.New(c.nc); err != nil {
		c.nc.Close()
		return nil, fmt.Errorf("open jetstream: %w", err)
	}
	c.blobs = &blobs{js: c.js, limits: o.Limits}
	if c.nc.IsConnected() {
		c.goneAt.Store(nil) // nobody is to be told yet
	}
	return c, nil
}

func (o Options) target(opts []nats.Option) ([]nats.Option, string, error) {
	if o.Embedded != nil {
		return append(opts, nats.InProcessServer(o.Embedded.srv)), "", nil
	}
	if o.URL == "" {
		return nil, "", errors.New("connect to nats: no url")
	}
	if o.CredentialsFile != "" {
		opts = append(opts, nats.UserCredentials(o.CredentialsFile))
	}
	if o.User != "" {
		opts = append(opts, nats.UserInfo(o.User, o.Password))
	}
	if o.Token != "" {
		opts = append(opts, nats.Token(o.Token))
	}
	if o.CAFile != "" {
		opts = append(opts, nats.RootCAs(o.CAFile))
	}
	if o.CertFile != "" {
		opts = append(opts, nats.ClientCert(o.CertFile, o.KeyFile))
	}
	return opts, o.URL, nil
}

// OnReconnect registers fn to be called, in a goroutine of the connection's own,
// after each connection to a server. fn must not block for long.
func (c *Conn) OnReconnect(fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onReconnect = append(c.onReconnect, fn)
}

func (c *Conn) gone() {
	now := time.Now()
	c.goneAt.CompareAndSwap(nil, &now)
}

func (c *Conn) reconnected(nc *nats.Conn) {
	before := nc.Stats().Reconnects
	c.log.Info("connected to nats")
	c.mu.Lock()
	fns := append([]func(){}, c.onReconnect...)
	c.mu.Unlock()
	for _, fn := range fns {
		fn()
	}
	if nc.IsConnected() && nc.Stats().Reconnects == before {
		c.goneAt.Store(nil) // else it was lost meanwhile, and they are told of the next one
	}
}

// Ready reports whether the server answers.
func (c *Conn) Ready(ctx context.Context) error {
	if !c.nc.IsConnected() {
		return errors.New("nats: not connected")
	}
	if err := c.nc.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("nats: %w", err)
	}
	return nil
}

// Connected reports whether there is a connection at this moment, of which those know who
// must act after a new one.
func (c *Conn) Connected() bool { return c.goneAt.Load() == nil && c.nc.IsConnected() }

// DisconnectedFor returns for how long there has been no connection, zero while there
// is one.
func (c *Conn) DisconnectedFor() time.Duration {
	at := c.goneAt.Load()
	if at == nil || c.nc.IsConnected() {
		return 0
	}
	return max(time.Since(*at), 1)
}

// Flush waits until the server has all that was published.
func (c *Conn) Flush(ctx context.Context) error { return c.nc.FlushWithContext(ctx) }

// Close sends what is still buffered and closes the connection.
func (c *Conn) Close() {
	if c.nc.IsConnected() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = c.nc.FlushWithContext(ctx) // the connection closes either way
		cancel()
	}
	c.nc.Close()
}

// subscribe hears a subject with room enough that only a stuck process loses messages.
func (c *Conn) subscribe(subject string, fn nats.MsgHandler) (*nats.Subscription, error) {
	sub, err := c.nc.Subscribe(subject, fn)
	if err != nil {
		return nil, fmt.Errorf("subscribe %s: %w", subject, err)
	}
	if err := sub.SetPendingLimits(pendingMessages, pendingBytes); err != nil {
		return nil, fmt.Errorf("subscribe %s: %w", subject, err)
	}
	return sub, nil
}
