package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"sluice/internal/inference"
)

// inlineBytes is the largest body that travels in a message. It leaves room below
// NATS's default payload of 1 MB, and keeps large bodies out of the memory of the
// job streams.
const inlineBytes = 256 << 10

// blobTimeout bounds the reading of one blob.
const blobTimeout = time.Minute

// forgetTimeout bounds the removal of what was not wholly put.
const forgetTimeout = time.Second

// ErrNoBlob says that there is no blob of the name.
var ErrNoBlob = errors.New("no such blob")

// ErrBlobTooLarge says that a blob holds more than the reader was ready to take.
var ErrBlobTooLarge = errors.New("blob larger than its bound")

// blobs keeps what is too large for a message in JetStream's object store (the
// claim check). The store checks the digest of what it reads back.
type blobs struct {
	js     jetstream.JetStream
	limits Limits

	mu    sync.Mutex
	store jetstream.ObjectStore
}

func (b *blobs) ensure(ctx context.Context) error {
	store, err := ensureBucket(ctx, b.js, jetstream.ObjectStoreConfig{
		Bucket:      blobBucket,
		Description: "Bodies too large for a message.",
		Storage:     jetstream.FileStorage,
		Replicas:    b.limits.Replicas,
		MaxBytes:    b.limits.BlobsBytes,
		TTL:         b.limits.BlobsAge,
	})
	if err != nil {
		return fmt.Errorf("ensure object store %s: %w", blobBucket, err)
	}
	b.mu.Lock()
	b.store = store
	b.mu.Unlock()
	return nil
}

func (b *blobs) bucket() (jetstream.ObjectStore, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.store == nil {
		return nil, errors.New("object store is not ready")
	}
	return b.store, nil
}

func (b *blobs) put(ctx context.Context, name string, body []byte) error {
	store, err := b.bucket()
	if err != nil {
		return err
	}
	if _, err := store.Put(ctx, jetstream.ObjectMeta{Name: name}, bytes.NewReader(body)); err != nil {
		b.forget(ctx, name)
		if isFull(err) {
			return fmt.Errorf("store blob %s: %w: %w", name, ErrFull, err)
		}
		return fmt.Errorf("store blob %s: %w", name, err)
	}
	return nil
}

// forget removes a blob whose put has failed, which may have been at its very end: then it
// is there, and nobody knows of it.
func (b *blobs) forget(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetTimeout)
	defer cancel()
	_ = b.remove(ctx, name) // its age removes it otherwise
}

// bodyName names the blob that holds a job's body.
func bodyName(jobID string) string { return jobID + ".body" }

// putBody keeps a body that is too large for a message. It returns its name, or "" when
// the body travels in the message itself.
func (b *blobs) putBody(ctx context.Context, j *inference.Job) (string, error) {
	if len(j.Body) <= inlineBytes {
		return "", nil
	}
	if err := b.put(ctx, bodyName(j.ID), j.Body); err != nil {
		return "", err
	}
	return bodyName(j.ID), nil
}

func (b *blobs) get(ctx context.Context, name string, admit func(size int64) error) ([]byte, error) {
	store, err := b.bucket()
	if err != nil {
		return nil, err
	}
	info, err := store.GetInfo(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil, fmt.Errorf("fetch blob %s: %w", name, ErrNoBlob)
	}
	if err != nil {
		return nil, fmt.Errorf("fetch blob %s: %w", name, err)
	}
	if err := admit(int64(min(info.Size, math.MaxInt64))); err != nil {
		return nil, fmt.Errorf("fetch blob %s: %w", name, err)
	}
	// Without a deadline of ours the library sets a short one for the whole reading.
	ctx, cancel := context.WithTimeout(ctx, blobTimeout)
	defer cancel()
	obj, err := store.Get(pulsed{ctx}, name)
	if err != nil {
		return nil, fmt.Errorf("fetch blob %s: %w", name, err)
	}
	defer obj.Close()
	body := make([]byte, info.Size)
	if _, err := io.ReadFull(obj, body); err != nil {
		return nil, fmt.Errorf("fetch blob %s: %w", name, err)
	}
	// The digest is checked when the reader meets the end.
	if _, err := obj.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("fetch blob %s: %w", name, err)
	}
	return body, nil
}

// pulsed is a context that seems about to end. The library's reader waits for bytes until
// the deadline, and only then sees that nobody wants them any more; while somebody does, it
// waits again.
type pulsed struct{ context.Context } //nolint:containedctx // it is one

// readPulse is how long a reading goes on after its context has ended.
const readPulse = 250 * time.Millisecond

func (p pulsed) Deadline() (time.Time, bool) { return time.Now().Add(readPulse), true }

// remove is best effort: the bucket's age limit takes what it misses.
func (b *blobs) remove(ctx context.Context, name string) error {
	store, err := b.bucket()
	if err != nil {
		return err
	}
	if err := store.Delete(ctx, name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		return fmt.Errorf("remove blob %s: %w", name, err)
	}
	return nil
}

// FetchBlob returns the blob's bytes, at most maxBytes of them.
func (c *Conn) FetchBlob(ctx context.Context, name string, maxBytes int64) ([]byte, error) {
	return c.blobs.get(ctx, name, func(size int64) error {
		if size > maxBytes {
			return ErrBlobTooLarge
		}
		return nil
	})
}

// FetchBlobWhen returns the blob's bytes once admit, which is told how many they are,
// has let them into memory.
func (c *Conn) FetchBlobWhen(ctx context.Context, name string, admit func(size int64) error) ([]byte, error) {
	return c.blobs.get(ctx, name, admit)
}

// RemoveBlob removes a blob that nobody needs any more.
func (c *Conn) RemoveBlob(ctx context.Context, name string) error {
	return c.blobs.remove(ctx, name)
}

// BlobSize returns how many bytes the blob has. The error wraps ErrNoBlob.
func (c *Conn) BlobSize(ctx context.Context, name string) (int64, error) {
	store, err := c.blobs.bucket()
	if err != nil {
		return 0, err
	}
	info, err := store.GetInfo(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		err = ErrNoBlob
	}
	if err != nil {
		return 0, fmt.Errorf("look up blob %s: %w", name, err)
	}
	return int64(min(info.Size, math.MaxInt64)), nil
}
