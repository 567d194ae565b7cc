package queue

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// fileChunk is how many bytes of a file travel in one message, which is what the
// library's own object store does, too.
const fileChunk = 128 << 10

// fileWindow is how many chunks of an upload may be on their way to the server at once:
// what it costs in memory, here and there.
const fileWindow = 8

// fileMark is after how many chunks their place in the stream is noted, so that a
// reader who begins in the middle skips at most so many.
const fileMark = 16

// fileMarks names the metadata of an object that holds these places.
const fileMarks = "sluice-marks"

// Errors of file contents.
var (
	// ErrNoFile says that there is no content of this id, or only a part of it.
	ErrNoFile = errors.New("no such file content")

	// ErrFileDamaged says that a content is not what was stored.
	ErrFileDamaged = errors.New("file content is damaged")
)

// files keeps the contents of files in an object store of their own, in the layout that
// every NATS client knows. It writes and reads that layout itself because the library's
// Put keeps up to 4,000 chunks on their way, its Get needs a consumer and begins at the
// start, its Delete leaves a marker for ever, and chunks whose writer died are found by
// nobody. The last is why an object begins here with a marker that says "deleted": an
// object with chunks always has an entry, and whoever lists the entries finds all.
type files struct {
	mu     sync.Mutex
	stream jetstream.Stream
}

// EnsureFiles creates the object store for files, or brings it to its configured bound.
func (c *Conn) EnsureFiles(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	if _, err := ensureBucket(ctx, c.js, c.limits.files()); err != nil {
		return fmt.Errorf("ensure object store %s: %w", filesBucket, err)
	}
	stream, err := c.js.Stream(ctx, bucketStream(filesBucket))
	if err != nil {
		return fmt.Errorf("ensure object store %s: %w", filesBucket, err)
	}
	c.files.mu.Lock()
	c.files.stream = stream
	c.files.mu.Unlock()
	return nil
}

func (f *files) ready() (jetstream.Stream, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stream == nil {
		return nil, errors.New("object store is not ready")
	}
	return f.stream, nil
}

// FileContent is what is known of a content that is whole.
type FileContent struct {
	Bytes  int64
	Digest [sha256.Size]byte
}

// PutFile stores a file's content as it comes and returns once the server has all of
// it. The id must be new: RemoveFile goes before a repetition. Whatever goes wrong,
// nothing is left behind but what an EntryReader meets. The error wraps what from
// returned, or ErrFull, or ErrNoQueue.
func (c *Conn) PutFile(ctx context.Context, id string, from io.Reader) (FileContent, error) {
	content, err := c.putFile(ctx, id, from)
	if err == nil {
		return content, nil
	}
	err = fmt.Errorf("store file %s: %w", id, err)
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), apiTimeout)
	defer cancel()
	if cleanErr := c.RemoveFile(clean, id); cleanErr != nil {
		return FileContent{}, errors.Join(err, cleanErr)
	}
	return FileContent{}, err
}

func (c *Conn) putFile(ctx context.Context, id string, from io.Reader) (content FileContent, err error) {
	if _, err := c.files.ready(); err != nil {
		return content, err
	}
	w, err := c.newFileWriter(id)
	if err != nil {
		return content, err
	}
	defer func() { err = errors.Join(err, w.close(ctx)) }()
	if err := w.entry(ctx, jetstream.ObjectInfo{Deleted: true}); err != nil {
		return content, err
	}
	sum, chunk := sha256.New(), make([]byte, fileChunk)
	for {
		n, last, err := fill(from, chunk)
		if err != nil {
			return content, err
		}
		if n > 0 {
			sum.Write(chunk[:n])
			content.Bytes += int64(n)
			if err := w.chunk(ctx, chunk[:n]); err != nil {
				return content, err
			}
		}
		if last {
			break
		}
	}
	if err := w.settle(ctx, 0); err != nil {
		return content, err
	}
	sum.Sum(content.Digest[:0])
	return content, w.entry(ctx, jetstream.ObjectInfo{
		Size: uint64(content.Bytes), Chunks: uint32(w.sent), Digest: digestText(sum),
		ObjectMeta: jetstream.ObjectMeta{Metadata: map[string]string{fileMarks: strings.Join(w.marks, ",")}},
	})
}

// fill reads until the chunk is full or the end is met. The end is io.EOF itself and
// nothing that wraps it: what a reader says of an end that comes too soon is no end.
func fill(from io.Reader, chunk []byte) (n int, last bool, err error) {
	for n < len(chunk) {
		m, err := from.Read(chunk[n:])
		n += m
		if err == io.EOF {
			return n, true, nil
		}
		if err != nil {
			return n, false, err
		}
	}
	return n, false, nil
}

func digestText(sum hash.Hash) string {
	return "SHA-256=" + base64.URLEncoding.EncodeToString(sum.Sum(nil))
}

// fileWriter writes one object. Acknowledgements come back in the order of the chunks.
// A chunk is never sent again: it could arrive behind a later one.
type fileWriter struct {
	conn  *Conn
	id    string
	inbox string
	acks  *nats.Subscription

	due           int      // acknowledgements that have not come
	sent, settled int      // chunks
	last          uint64   // place of the last chunk that is settled
	marks         []string // places of every fileMark-th chunk
}

func (c *Conn) newFileWriter(id string) (*fileWriter, error) {
	w := &fileWriter{conn: c, id: id, inbox: nats.NewInbox()}
	var err error
	w.acks, err = c.nc.SubscribeSync(w.inbox)
	return w, err
}

// close waits for what is on its way after a failure: none of it may arrive once the
// object was removed. What the server does not answer for is left to the sweep.
func (w *fileWriter) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), apiTimeout)
	defer cancel()
	for w.due > 0 && ctx.Err() == nil && w.conn.Connected() {
		_, _ = w.ack(ctx)
	}
	return w.acks.Unsubscribe()
}

// chunk sends one chunk once there is room for it. The bytes may be used again when it
// returns.
func (w *fileWriter) chunk(ctx context.Context, data []byte) error {
	if err := w.settle(ctx, fileWindow-1); err != nil {
		return err
	}
	if err := w.conn.nc.PublishRequest(fileChunks(w.id), w.inbox, data); err != nil {
		return err
	}
	w.sent, w.due = w.sent+1, w.due+1
	return nil
}

// settle waits until at most so many chunks are on their way.
func (w *fileWriter) settle(ctx context.Context, most int) error {
	for w.sent-w.settled > most {
		seq, err := w.ack(ctx)
		if err != nil {
			return err
		}
		if seq <= w.last {
			return fmt.Errorf("chunk %d stands at %d, not behind %d", w.settled, seq, w.last)
		}
		if w.settled%fileMark == 0 {
			w.marks = append(w.marks, strconv.FormatUint(seq, 10))
		}
		w.settled, w.last = w.settled+1, seq
	}
	return nil
}

func (w *fileWriter) ack(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	m, err := w.acks.NextMsgWithContext(ctx)
	if err != nil {
		return 0, err
	}
	w.due--
	return parsePubAck(m)
}

// entry replaces what the bucket says of the object.
func (w *fileWriter) entry(ctx context.Context, info jetstream.ObjectInfo) error {
	info.Name, info.NUID, info.Bucket = w.id, w.id, filesBucket
	info.Opts = &jetstream.ObjectMetaOptions{ChunkSize: fileChunk}
	data, err := json.Marshal(info)
	if err != nil {
		return fmt.Errorf("encode entry: %w", err)
	}
	m := &nats.Msg{Subject: fileEntry(w.id), Reply: w.inbox, Header: nats.Header{}, Data: data}
	m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	if err := w.conn.nc.PublishMsg(m); err != nil {
		return err
	}
	w.due++
	_, err = w.ack(ctx)
	return err
}

// RemoveFile removes a content, or what there is of it. It may be repeated.
func (c *Conn) RemoveFile(ctx context.Context, id string) error {
	stream, err := c.files.ready()
	if err != nil {
		return err
	}
	// The entry goes last: as long as there are chunks, it tells of them.
	for _, subject := range []string{fileChunks(id), fileEntry(id)} {
		if err := stream.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
			return fmt.Errorf("remove file %s: %w", id, err)
		}
	}
	return nil
}

// FileEntry is an object that an EntryReader has met.
type FileEntry struct {
	ID string
	At time.Time // when its entry was last written
}

// EntryReader goes through the objects of the files' bucket, whole or not.
type EntryReader struct {
	conn *Conn
	next uint64
}

// NewEntryReader returns a reader that begins with the oldest entry.
func (c *Conn) NewEntryReader() *EntryReader { return &EntryReader{conn: c, next: 1} }

// entryBatch is how many entries one read asks for.
const entryBatch = 128

// Next returns the next objects, none after the last.
func (r *EntryReader) Next(ctx context.Context) ([]FileEntry, error) {
	messages, err := r.conn.fileMessages(ctx, fileEntries, r.next, entryBatch)
	if err != nil {
		return nil, fmt.Errorf("list files' contents: %w", err)
	}
	list := make([]FileEntry, 0, len(messages))
	for _, m := range messages {
		r.next = m.seq + 1
		id, err := base64.URLEncoding.DecodeString(strings.TrimPrefix(m.subject, fileEntryStart))
		if err == nil {
			list = append(list, FileEntry{string(id), m.at})
		}
	}
	return list, nil
}

// FileTouched returns when the object's last chunk came, zero if there is none.
func (c *Conn) FileTouched(ctx context.Context, id string) (time.Time, error) {
	stream, err := c.files.ready()
	if err != nil {
		return time.Time{}, err
	}
	m, err := stream.GetLastMsgForSubject(ctx, fileChunks(id))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("look at file %s: %w", id, err)
	}
	return m.Time, nil
}
