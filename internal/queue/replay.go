package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"

	"github.com/nats-io/nats.go"
)

// Block is a stretch of a kept answer, in the order in which it was sent.
type Block struct {
	Run      Run
	FirstSeq uint64
	Chunks   [][]byte
	End      *End // set in a run's last block
}

// KeptReader reads what is kept of one job's streamed answer, from the beginning.
type KeptReader struct {
	conn   *Conn
	jobID  string
	next   uint64 // where in the event stream to go on
	tenant string
	found  bool
}

// NewKeptReader returns a reader of the job's events.
func (c *Conn) NewKeptReader(jobID string) *KeptReader {
	return &KeptReader{conn: c, jobID: jobID, next: 1}
}

// Found reports whether Next has met anything of the job, and to which tenant the
// job belongs.
func (k *KeptReader) Found() (tenant string, ok bool) { return k.tenant, k.found }

// directBatch is how many blocks one read asks for.
const directBatch = 8

// Next returns the blocks that were kept since the last call, at most a batch; none
// when there is nothing new.
func (k *KeptReader) Next(ctx context.Context) ([]Block, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	nc := k.conn.nc
	sub, err := nc.SubscribeSync(nats.NewInbox())
	if err != nil {
		return nil, fmt.Errorf("read events of job %s: %w", k.jobID, err)
	}
	defer func() { _ = sub.Unsubscribe() }()

	// A direct get of several messages: the server sends them one by one, then a
	// message without a body and with status 204.
	req, err := json.Marshal(map[string]any{"seq": k.next, "next_by_subj": eventsSubject(k.jobID), "batch": directBatch})
	if err != nil {
		return nil, fmt.Errorf("read events of job %s: %w", k.jobID, err)
	}
	if err := nc.PublishRequest("$JS.API.DIRECT.GET."+eventsStream, sub.Subject, req); err != nil {
		return nil, fmt.Errorf("read events of job %s: %w", k.jobID, err)
	}
	var blocks []Block
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return nil, fmt.Errorf("read events of job %s: %w", k.jobID, err)
		}
		switch status := m.Header.Get("Status"); status {
		case "":
		case "204", "404":
			return blocks, nil
		default:
			return nil, fmt.Errorf("read events of job %s: status %s", k.jobID, status)
		}
		b, err := k.block(m)
		if b == nil && err == nil {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read events of job %s: %w", k.jobID, err)
		}
		blocks = append(blocks, *b)
	}
}

func (k *KeptReader) block(m *nats.Msg) (*Block, error) {
	seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil {
		return nil, errFrame
	}
	k.next = seq + 1
	if k.tenant, err = url.QueryUnescape(m.Header.Get(hdrTenant)); err != nil {
		return nil, errFrame
	}
	k.found = true
	if m.Header.Get(hdrOpen) != "" {
		return nil, nil //nolint:nilnil // the opening is no block
	}
	// A block is cut at blockBytes, unless one chunk, which fits in a message, is larger.
	return decodeBlock(k.jobID, m.Header, m.Data, blockBytes+int(k.conn.nc.MaxPayload()))
}

// Attach tells the job's ingress that a client reads the job's events here, so that
// it goes on with the job although its own client is gone.
func (c *Conn) Attach(jobID string) error {
	if err := c.nc.Publish(replySubject(whatAttach, jobID), nil); err != nil {
		return fmt.Errorf("attach to job %s: %w", jobID, err)
	}
	return nil
}
