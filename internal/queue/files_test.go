package queue

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

func setupFiles(t *testing.T, most int64) *Conn {
	t.Helper()
	c := connectTo(t, startServer(t))
	c.limits.FilesBytes = most
	require.NoError(t, c.EnsureFiles(t.Context()))
	require.NoError(t, c.EnsureFiles(t.Context()), "a second time changes nothing")
	return c
}

func noise(size int) []byte {
	r := rand.NewChaCha8([32]byte{byte(size)})
	b := make([]byte, size)
	_, _ = r.Read(b)
	return b
}

// readFile reads a content from the offset to its end.
func readFile(t *testing.T, c *Conn, id string, offset int64) []byte {
	t.Helper()
	r, err := c.OpenFile(t.Context(), id, offset)
	require.NoError(t, err)
	all := []byte{}
	for {
		data, err := r.Next(t.Context())
		require.NoError(t, err)
		if len(data) == 0 {
			return all
		}
		all = append(all, data...)
	}
}

// held is how many messages the files' bucket holds.
func held(t *testing.T, c *Conn) uint64 {
	t.Helper()
	stream, err := c.js.Stream(t.Context(), bucketStream(filesBucket))
	require.NoError(t, err)
	return stream.CachedInfo().State.Msgs
}

func TestFileContents(t *testing.T) {
	t.Parallel()
	c := setupFiles(t, 1<<30)
	const stretch = fileMark * fileChunk
	for name, size := range map[string]int{
		"empty": 0, "one": 1, "chunk": fileChunk, "chunk-and-one": fileChunk + 1, "stretch": stretch, "several": 3*stretch + 12345,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := noise(size)
			// A reader that gives little at a time makes no smaller chunks.
			got, err := c.PutFile(t.Context(), name, iotest.HalfReader(bytes.NewReader(body)))
			require.NoError(t, err)
			require.Equal(t, FileContent{int64(size), sha256.Sum256(body)}, got)
			for _, offset := range []int64{0, 1, fileChunk - 1, fileChunk, stretch - 1, stretch, 2*stretch + 7, int64(size) - 1, int64(size), int64(size) + 1} {
				if offset >= 0 {
					require.True(t, bytes.Equal(body[min(offset, int64(size)):], readFile(t, c, name, offset)), "from %d on", offset)
				}
			}
			bucket, err := c.js.ObjectStore(t.Context(), filesBucket)
			require.NoError(t, err)
			theirs, err := bucket.GetBytes(t.Context(), name)
			require.NoError(t, err, "any client of NATS can read it")
			require.True(t, bytes.Equal(body, theirs))
		})
	}
}

func TestUploadsBesideEachOtherDoNotMix(t *testing.T) {
	t.Parallel()
	c := setupFiles(t, 1<<30)
	ids := []string{"a", "b", "c", "d"}
	done := make(chan error, len(ids))
	for i, id := range ids {
		go func() {
			_, err := c.PutFile(t.Context(), id, bytes.NewReader(noise(5<<20+i)))
			done <- err
		}()
	}
	for range ids {
		require.NoError(t, receive(t, done))
	}
	for i, id := range ids {
		require.True(t, bytes.Equal(noise(5<<20 + i)[4<<20:], readFile(t, c, id, 4<<20)))
		require.True(t, bytes.Equal(noise(5<<20+i), readFile(t, c, id, 0)))
	}
}

func TestAFileThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	c := setupFiles(t, 8<<20)
	broken := errors.New("the client is gone")
	_, err := c.PutFile(t.Context(), "broken", io.MultiReader(bytes.NewReader(noise(3<<20)), iotest.ErrReader(broken)))
	require.ErrorIs(t, err, broken)
	require.Zero(t, held(t, c))

	for _, end := range []error{io.ErrUnexpectedEOF, fmt.Errorf("read form: %w", io.EOF), fmt.Errorf("read form: %w", io.ErrUnexpectedEOF)} {
		_, err = c.PutFile(t.Context(), "truncated", io.MultiReader(bytes.NewReader(noise(1000)), iotest.ErrReader(end)))
		require.ErrorIs(t, err, end, "an end that comes too soon is no end")
		require.Zero(t, held(t, c))
	}

	begun := time.Now()
	_, err = c.PutFile(t.Context(), "large", bytes.NewReader(noise(20<<20)))
	require.ErrorIs(t, err, ErrFull)
	require.Less(t, time.Since(begun), apiTimeout, "nothing is waited for that has been answered")
	require.Zero(t, held(t, c))

	ctx, cancel := context.WithCancel(t.Context())
	_, err = c.PutFile(ctx, "cancelled", io.MultiReader(bytes.NewReader(noise(2<<20)), readerFunc(func([]byte) (int, error) {
		cancel()
		return 0, ctx.Err()
	})))
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, held(t, c))
	for _, id := range []string{"broken", "truncated", "large", "cancelled"} {
		_, err := c.OpenFile(t.Context(), id, 0)
		require.ErrorIs(t, err, ErrNoFile)
	}
}

func TestFewChunksAreOnTheirWay(t *testing.T) {
	t.Parallel()
	c := setupFiles(t, 1<<30)
	require.NoError(t, c.js.DeleteStream(t.Context(), bucketStream(filesBucket)))
	sent := make(chan string, 100) // in the place of a server that is slow to store
	sub, err := c.nc.Subscribe("$O."+filesBucket+".>", func(m *nats.Msg) {
		if strings.HasPrefix(m.Subject, fileEntryStart) {
			_ = m.Respond([]byte(`{"seq":1}`))
			return
		}
		sent <- m.Subject
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = c.PutFile(ctx, "f", bytes.NewReader(noise(5*fileWindow*fileChunk)))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Len(t, sent, fileWindow)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestAPartOfAFileIsNoFileAndIsFound(t *testing.T) {
	t.Parallel()
	c := setupFiles(t, 1<<30)
	paused, goOn := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, err := c.PutFile(t.Context(), "half", io.MultiReader(bytes.NewReader(noise(20*fileChunk)), readerFunc(func([]byte) (int, error) {
			close(paused)
			<-goOn
			return 0, io.EOF
		})))
		done <- err
	}()
	receive(t, paused)
	_, err := c.OpenFile(t.Context(), "half", 0)
	require.ErrorIs(t, err, ErrNoFile)
	entries := c.NewEntryReader()
	found, err := entries.Next(t.Context())
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, "half", found[0].ID)
	require.WithinDuration(t, time.Now(), found[0].At, time.Minute)
	touched, err := c.FileTouched(t.Context(), "half")
	require.NoError(t, err)
	require.False(t, touched.Before(found[0].At))

	close(goOn)
	require.NoError(t, receive(t, done))
	require.Len(t, readFile(t, c, "half", 0), 20*fileChunk)
	require.NoError(t, c.RemoveFile(t.Context(), "half"))
	require.NoError(t, c.RemoveFile(t.Context(), "half"), "it may be repeated")
	require.Zero(t, held(t, c), "no marker is left")
	touched, err = c.FileTouched(t.Context(), "half")
	require.NoError(t, err)
	require.True(t, touched.IsZero())
}

func TestEntriesAreReadInPortions(t *testing.T) {
	t.Parallel()
	c := setupFiles(t, 1<<30)
	const files = entryBatch + 5
	for i := range files {
		_, err := c.PutFile(t.Context(), strings.Repeat("x", i+1), strings.NewReader("content"))
		require.NoError(t, err)
	}
	seen, entries := make(map[string]bool), c.NewEntryReader()
	for {
		batch, err := entries.Next(t.Context())
		require.NoError(t, err)
		require.LessOrEqual(t, len(batch), entryBatch)
		if len(batch) == 0 {
			break
		}
		for _, e := range batch {
			seen[e.ID] = true
		}
	}
	require.Len(t, seen, files)
}

func TestDamagedAndVanishedContents(t *testing.T) {
	t.Parallel()
	c := setupFiles(t, 1<<30)
	body := noise(20 * fileChunk)
	_, err := c.PutFile(t.Context(), "f", bytes.NewReader(body))
	require.NoError(t, err)
	r, err := c.OpenFile(t.Context(), "f", 0)
	require.NoError(t, err)
	_, err = r.Next(t.Context())
	require.NoError(t, err)
	require.NoError(t, c.RemoveFile(t.Context(), "f"))
	for err == nil {
		_, err = r.Next(t.Context())
	}
	require.ErrorIs(t, err, ErrNoFile, "removed while it is read")

	_, err = c.PutFile(t.Context(), "g", bytes.NewReader(body))
	require.NoError(t, err)
	stream, err := c.js.Stream(t.Context(), bucketStream(filesBucket))
	require.NoError(t, err)
	last, err := stream.GetLastMsgForSubject(t.Context(), fileChunks("g"))
	require.NoError(t, err)
	require.NoError(t, stream.DeleteMsg(t.Context(), last.Sequence))
	_, err = c.js.Publish(t.Context(), fileChunks("g"), noise(fileChunk))
	require.NoError(t, err)
	r, err = c.OpenFile(t.Context(), "g", 0)
	require.NoError(t, err)
	got := 0
	for err == nil {
		var data []byte
		data, err = r.Next(t.Context())
		got += len(data)
	}
	require.ErrorIs(t, err, ErrFileDamaged)
	require.Less(t, got, len(body), "a damaged file never looks whole")
}

func TestTheFilesBucketTakesItsBound(t *testing.T) {
	t.Parallel()
	c := setupFiles(t, 8<<20)
	stream, err := c.js.Stream(t.Context(), bucketStream(filesBucket))
	require.NoError(t, err)
	cfg := stream.CachedInfo().Config
	require.EqualValues(t, 8<<20, cfg.MaxBytes)
	require.Equal(t, jetstream.FileStorage, cfg.Storage)
	require.Zero(t, cfg.MaxAge, "files stay until they are removed")
}

// A large file goes in and out within memory that does not grow with it, the embedded
// server's included.
//
//nolint:paralleltest // the heap is the whole process's
func TestMemoryStaysFlat(t *testing.T) {
	c := setupFiles(t, 1<<30)
	const size, bound = 128 << 20, 48 << 20
	base := liveHeap()
	var highest atomic.Uint64
	look := func() {
		for now := liveHeap(); ; {
			was := highest.Load()
			if now <= was || highest.CompareAndSwap(was, now) {
				return
			}
		}
	}
	from, read := rand.NewChaCha8([32]byte{}), 0
	_, err := c.PutFile(t.Context(), "large", io.LimitReader(readerFunc(func(p []byte) (int, error) {
		if read += len(p); read%(16<<20) < len(p) {
			look()
		}
		return from.Read(p)
	}), size))
	require.NoError(t, err)
	r, err := c.OpenFile(t.Context(), "large", 0)
	require.NoError(t, err)
	for got := 0; got < size; {
		data, err := r.Next(t.Context())
		require.NoError(t, err)
		require.NotEmpty(t, data)
		if got += len(data); got%(16<<20) < len(data) {
			look()
		}
	}
	grown := int64(highest.Load()) - int64(base)
	t.Logf("the heap grew by %d MiB at most", grown>>20)
	require.Less(t, grown, int64(bound))
}

// liveHeap is what is in use once the garbage is gone.
func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
