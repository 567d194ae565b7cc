package queue

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// fileBatch is how many chunks a reader asks for at once: what it holds in memory for a
// client, however slow that is. No consumer stands behind it.
const fileBatch = 8

// FileReader reads a file's content. It holds nothing that must be closed.
type FileReader struct {
	conn  *Conn
	id    string
	next  uint64 // where in the stream to go on
	skip  int    // bytes of the next chunk that lie before the beginning
	left  int64  // bytes still to be read
	ready []fileMessage
	sum   hash.Hash // of everything read; nil when the reading did not begin at the start
	info  *jetstream.ObjectInfo
}

// OpenFile returns a reader of the content from the offset on; one at or beyond its end
// reads nothing. The error wraps ErrNoFile when the content is not there.
func (c *Conn) OpenFile(ctx context.Context, id string, offset int64) (*FileReader, error) {
	info, err := c.fileInfo(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("open file %s: %w", id, err)
	}
	r := &FileReader{conn: c, id: id, info: info, left: max(int64(info.Size)-offset, 0)}
	if offset <= 0 {
		r.left, r.sum = int64(info.Size), sha256.New()
	}
	if r.left == 0 {
		return r, nil
	}
	marks := strings.Split(info.Metadata[fileMarks], ",")
	mark := max(offset, 0) / (fileMark * fileChunk)
	if mark >= int64(len(marks)) {
		return nil, fmt.Errorf("open file %s: %w", id, ErrFileDamaged)
	}
	if r.next, err = strconv.ParseUint(marks[mark], 10, 64); err != nil {
		return nil, fmt.Errorf("open file %s: %w", id, ErrFileDamaged)
	}
	r.skip = int(max(offset, 0) - mark*fileMark*fileChunk)
	return r, nil
}

// fileInfo asks the stream's leader what it says of the object: a follower may not yet
// know of one that was just stored.
func (c *Conn) fileInfo(ctx context.Context, id string) (*jetstream.ObjectInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	request, err := json.Marshal(map[string]string{"last_by_subj": fileEntry(id)})
	if err != nil {
		return nil, err
	}
	m, err := c.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+bucketStream(filesBucket), request)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Message *struct {
			Data []byte `json:"data"`
		} `json:"message"`
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return nil, fmt.Errorf("decode entry: %w", err)
	}
	switch {
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, ErrNoFile
	case answer.Error != nil:
		return nil, answer.Error
	case answer.Message == nil:
		return nil, errors.New("the server's answer has no entry")
	}
	info := new(jetstream.ObjectInfo)
	if err := json.Unmarshal(answer.Message.Data, info); err != nil {
		return nil, fmt.Errorf("decode entry: %w", ErrFileDamaged)
	}
	if info.Deleted {
		return nil, ErrNoFile
	}
	return info, nil
}

// Bytes is the size of the whole content.
func (r *FileReader) Bytes() int64 { return int64(r.info.Size) }

// Next returns the next bytes, none behind the last ones. They are valid until the next
// call. The last bytes of a content that was read from its start are returned only if
// all of it is what was stored: the error wraps ErrFileDamaged otherwise, and ErrNoFile
// when the content was removed meanwhile.
func (r *FileReader) Next(ctx context.Context) ([]byte, error) {
	for r.left > 0 {
		if len(r.ready) == 0 {
			if err := r.fetch(ctx); err != nil {
				return nil, fmt.Errorf("read file %s: %w", r.id, err)
			}
		}
		data := r.ready[0].data
		r.ready = r.ready[1:]
		if r.skip >= len(data) {
			r.skip -= len(data)
			continue
		}
		data, r.skip = data[r.skip:], 0
		r.left -= int64(len(data))
		if err := r.check(data); err != nil {
			return nil, fmt.Errorf("read file %s: %w", r.id, err)
		}
		return data, nil
	}
	return nil, nil
}

func (r *FileReader) check(data []byte) error {
	if r.left < 0 {
		return ErrFileDamaged
	}
	if r.sum == nil {
		return nil
	}
	r.sum.Write(data)
	if r.left == 0 && digestText(r.sum) != r.info.Digest {
		return ErrFileDamaged
	}
	return nil
}

// Bounds of the wait for chunks that a follower of the stream's leader lacks still.
const (
	laggardTries = 20
	laggardPause = 50 * time.Millisecond
)

// fetch asks for the next chunks.
func (r *FileReader) fetch(ctx context.Context) error {
	for range laggardTries {
		messages, err := r.conn.fileMessages(ctx, fileChunks(r.id), r.next, fileBatch)
		if err != nil {
			return err
		}
		if len(messages) > 0 {
			r.ready, r.next = messages, messages[len(messages)-1].seq+1
			return nil
		}
		pause := time.NewTimer(laggardPause)
		select {
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		case <-pause.C:
		}
	}
	return ErrNoFile
}

// fileMessage is one message of the files' bucket.
type fileMessage struct {
	subject string
	seq     uint64
	at      time.Time
	data    []byte
}

// fileMessages reads messages of the subject from a place in the bucket on, at most so
// many; none when there are none.
func (c *Conn) fileMessages(ctx context.Context, subject string, from uint64, most int) ([]fileMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	sub, err := c.nc.SubscribeSync(nats.NewInbox())
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection may be closed already
	request, err := json.Marshal(map[string]any{"seq": from, "next_by_subj": subject, "batch": most})
	if err != nil {
		return nil, err
	}
	if err := c.nc.PublishRequest("$JS.API.DIRECT.GET."+bucketStream(filesBucket), sub.Subject, request); err != nil {
		return nil, err
	}
	var messages []fileMessage
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return nil, err
		}
		switch status := m.Header.Get("Status"); status {
		case "":
		case "204", "404":
			return messages, nil
		default:
			return nil, fmt.Errorf("direct get: status %s", status)
		}
		message, err := readFileMessage(m)
		if err != nil {
			return nil, err
		}
		messages = append(messages, message)
	}
}

func readFileMessage(m *nats.Msg) (fileMessage, error) {
	seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil {
		return fileMessage{}, errFrame
	}
	at, err := time.Parse(time.RFC3339Nano, m.Header.Get("Nats-Time-Stamp"))
	if err != nil {
		return fileMessage{}, errFrame
	}
	return fileMessage{m.Header.Get("Nats-Subject"), seq, at, m.Data}, nil
}

// fileEntry is where the bucket says what it has of an object.
func fileEntry(id string) string {
	return fileEntryStart + base64.URLEncoding.EncodeToString([]byte(id))
}
