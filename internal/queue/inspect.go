package queue

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/tidwall/gjson"

	"sluice/internal/inference"
)

// Lanes are the lanes of a provider's queue, in the order in which they are served.
var Lanes = [...]inference.Lane{inference.LaneInteractive, inference.LaneBackground, inference.LaneBatch}

// LaneDepth is what stands in one lane of a provider's queue. Background and batch lane
// share a stream, so that their bound and their bytes are those of both together.
type LaneDepth struct {
	Lane    inference.Lane
	Waiting int       // that no worker had
	Running int       // in a worker's hands, or given back by one
	Oldest  time.Time // when the oldest of those that wait came, by the server's clock; zero: none waits
	Bound   int64     // messages; zero: none
	Bytes   uint64
}

// Depths asks what stands in the provider's lanes. A lane without a stream is empty.
func (c *Conn) Depths(ctx context.Context, provider string) ([]LaneDepth, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	depths := make([]LaneDepth, 0, len(Lanes))
	for _, lane := range Lanes {
		d, err := c.laneDepth(ctx, provider, lane)
		if err != nil {
			return nil, err
		}
		depths = append(depths, d)
	}
	return depths, nil
}

// Holding returns the providers whose queues hold jobs, in no order, whether or not anybody
// knows of the provider any more.
func (c *Conn) Holding(ctx context.Context) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	holding := make(map[string]bool)
	list := c.js.ListStreams(ctx, jetstream.WithStreamListSubject(jobSubject("*", ">")))
	for info := range list.Info() {
		name, ok := strings.CutPrefix(info.Config.Name, jobStreamStart)
		if !ok {
			name, ok = strings.CutPrefix(info.Config.Name, storedStart)
		}
		if ok && info.State.Msgs > 0 {
			holding[name] = true
		}
	}
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("list queues: %w", err)
	}
	return holding, nil
}

func (c *Conn) laneDepth(ctx context.Context, provider string, lane inference.Lane) (LaneDepth, error) {
	d, stream := LaneDepth{Lane: lane}, laneStream(provider, lane)
	info, err := c.streamInfo(ctx, stream, jobSubject(provider, lane))
	if err != nil || info == nil {
		return d, err
	}
	d.Bound, d.Bytes = max(info.Config.MaxMsgs, 0), info.State.Bytes
	d.Waiting = int(info.State.Subjects[jobSubject(provider, lane)])
	given, running, err := c.handedOut(ctx, stream, lane)
	if err != nil {
		return d, err
	}
	d.Running = min(running, d.Waiting)
	d.Waiting -= d.Running
	if d.Waiting == 0 {
		return d, nil
	}
	m, err := c.nextMessage(ctx, stream, jobSubject(provider, lane), given+1)
	if err != nil || m == nil {
		return d, err
	}
	d.Oldest = m.at
	return d, nil
}

// streamInfo describes the stream, with the number of messages of the subjects that the
// filter covers. It returns nil if there is no such stream.
func (c *Conn) streamInfo(ctx context.Context, stream, filter string) (*jetstream.StreamInfo, error) {
	s, err := c.js.Stream(ctx, stream)
	var info *jetstream.StreamInfo
	if err == nil {
		info, err = s.Info(ctx, jetstream.WithSubjectFilter(filter))
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil //nolint:nilnil // no stream is an answer like any other
	}
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", stream, err)
	}
	return info, nil
}

// handedOut tells up to which place of the stream workers have had the lane's messages,
// and how many of those are not acknowledged. Before its first worker it has no consumer.
func (c *Conn) handedOut(ctx context.Context, stream string, lane inference.Lane) (given uint64, running int, err error) {
	cons, err := c.js.Consumer(ctx, stream, string(lane))
	if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("look up consumer %s of %s: %w", lane, stream, err)
	}
	info := cons.CachedInfo()
	return info.Delivered.Stream, info.NumAckPending, nil
}

// message is what a stream holds at one place.
type message struct {
	seq     uint64
	at      time.Time
	subject string
	header  nats.Header
	data    []byte
}

// nextMessage returns the first message of the subject at or behind the place, nil if there
// is none.
func (c *Conn) nextMessage(ctx context.Context, stream, subject string, seq uint64) (*message, error) {
	q := fmt.Appendf(nil, `{"seq":%d,"next_by_subj":%q}`, max(seq, 1), subject)
	reply, err := c.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, q)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", stream, err)
	}
	return readMessage(stream, reply)
}

func readMessage(stream string, reply *nats.Msg) (*message, error) {
	if reply.Header.Get("Status") == "503" {
		return nil, fmt.Errorf("read %s: %w", stream, nats.ErrNoResponders) // JetStream is down
	}
	switch code, text := apiError(reply.Data); {
	case goneCode(code):
		return nil, nil //nolint:nilnil // nothing there is an answer like any other
	case code != 0:
		return nil, fmt.Errorf("read %s: %s (%d)", stream, text, code)
	}
	found := gjson.GetBytes(reply.Data, "message")
	m := &message{seq: found.Get("seq").Uint(), subject: found.Get("subject").Str, at: found.Get("time").Time()}
	var err error
	if m.data, err = base64.StdEncoding.DecodeString(found.Get("data").Str); err != nil {
		return nil, fmt.Errorf("read %s: data of message %d: %w", stream, m.seq, err)
	}
	lines, err := base64.StdEncoding.DecodeString(found.Get("hdrs").Str)
	if err == nil && len(lines) > 0 {
		m.header, err = nats.DecodeHeadersMsg(lines)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: headers of message %d: %w", stream, m.seq, err)
	}
	return m, nil
}

// QueuedJob is a job's message in a lane.
type QueuedJob struct {
	Job     *inference.Job // without its body; nil: it cannot be read
	BodyRef string
	Seq     uint64
	At      time.Time // when it came, by the server's clock
	Given   bool      // a worker has it, or had it and gave it back
}

// Queued lists the lane's messages from the place on that came before the time, or all
// with the zero time, the oldest first and limit at most. next is where to go on, zero at
// the end.
func (c *Conn) Queued(
	ctx context.Context, provider string, lane inference.Lane, from uint64, before time.Time, limit int,
) (jobs []QueuedJob, next uint64, err error) {
	stream, subject := laneStream(provider, lane), jobSubject(provider, lane)
	given, _, err := c.handedOut(ctx, stream, lane)
	if err != nil {
		return nil, 0, err
	}
	for len(jobs) < limit {
		m, err := c.nextMessage(ctx, stream, subject, from)
		if err != nil {
			return nil, 0, err
		}
		if m == nil || !before.IsZero() && !m.at.Before(before) {
			return jobs, 0, nil
		}
		q := QueuedJob{Seq: m.seq, At: m.at, Given: m.seq <= given}
		if job, ref, err := parseJob(m.subject, m.header, nil); err == nil {
			q.Job, q.BodyRef = job, ref
		}
		jobs, from = append(jobs, q), m.seq+1
	}
	return jobs, from, nil
}
