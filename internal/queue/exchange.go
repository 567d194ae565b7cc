package queue

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// What may be on its way to the server at once. It refuses what its streams' queues of
// incoming messages have no room for.
const (
	exchangeWindow = 256
	exchangeBytes  = 8 << 20
)

var (
	errSilent       = errors.New("the server does not answer")
	errNotConnected = errors.New("not connected")
)

// answered is what came back for one request.
type answered struct {
	msg *nats.Msg
	err error
}

// exchange sends requests, without waiting for one's answer before it sends the next, and
// returns what the server says to each. It gives up when ctx ends or the server says
// nothing for a while; requests that are not answered by then may have been heard or not.
func (c *Conn) exchange(ctx context.Context, requests []*nats.Msg) []answered {
	x := &exchanging{
		conn: c, requests: requests, out: make([]answered, len(requests)), open: make(map[int]bool, exchangeWindow),
		inbox: nats.NewInbox(), answers: make(chan *nats.Msg, len(requests)),
	}
	if len(requests) == 0 {
		return x.out
	}
	err := x.run(ctx)
	for i := range x.out {
		if err != nil && x.out[i].msg == nil && x.out[i].err == nil {
			x.out[i].err = err
		}
	}
	return x.out
}

// exchanging is one exchange at work.
type exchanging struct {
	conn     *Conn
	requests []*nats.Msg
	out      []answered
	inbox    string
	answers  chan *nats.Msg

	next int          // the request to send next
	open map[int]bool // those sent and not answered
	size int          // of those, in bytes
}

func (x *exchanging) run(ctx context.Context) error {
	sub, err := x.conn.subscribe(x.inbox+".*", func(m *nats.Msg) {
		select {
		case x.answers <- m:
		default: // more answers than requests
		}
	})
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }() // it fails only when the connection is closed
	if !x.conn.Connected() {
		return errNotConnected // what is published now would be sent when nobody waits for it any more
	}
	silence := time.NewTimer(apiTimeout)
	defer silence.Stop()
	for x.next < len(x.requests) || len(x.open) > 0 {
		if x.next < len(x.requests) && (len(x.open) == 0 || len(x.open) < exchangeWindow && x.size < exchangeBytes) {
			x.send()
			continue
		}
		select {
		case m := <-x.answers:
			x.heard(m)
			silence.Reset(apiTimeout)
		case <-ctx.Done():
			return ctx.Err()
		case <-silence.C:
			return errSilent
		}
	}
	return nil
}

func (x *exchanging) send() {
	i := x.next
	x.next++
	m := x.requests[i]
	m.Reply = x.inbox + "." + strconv.Itoa(i)
	if x.out[i].err = x.conn.nc.PublishMsg(m); x.out[i].err == nil {
		x.open[i] = true
		x.size += len(m.Data)
	}
}

func (x *exchanging) heard(m *nats.Msg) {
	i, err := strconv.Atoi(strings.TrimPrefix(m.Subject, x.inbox+"."))
	if err == nil && x.open[i] {
		delete(x.open, i)
		x.size -= len(x.requests[i].Data)
		x.out[i].msg = m
	}
}
