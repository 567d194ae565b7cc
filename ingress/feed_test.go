package ingress

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

var run1 = queue.Run{Epoch: 0, Delivery: 1}

// shelf is what is kept of one answer. Each reader of it is a shelfReader.
type shelf struct {
	mu     sync.Mutex
	blocks []queue.Block
	err    error
}

func (s *shelf) keep(b queue.Block) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocks = append(s.blocks, b)
}

func (s *shelf) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

type shelfReader struct {
	*shelf
	next int
}

func (r *shelfReader) Next(context.Context) ([]queue.Block, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return nil, r.err
	}
	more := r.blocks[r.next:min(len(r.blocks), r.next+8)]
	r.next += len(more)
	return more, nil
}

func text(seq uint64) string { return fmt.Sprintf("chunk %d", seq) }

func chunks(first, n uint64) [][]byte {
	list := make([][]byte, 0, n)
	for i := range n {
		list = append(list, []byte(text(first+i)))
	}
	return list
}

func live(first, n uint64) *queue.Events {
	return &queue.Events{Run: run1, FirstSeq: first, Chunks: chunks(first, n)}
}

func kept(first, n uint64) queue.Block {
	return queue.Block{Run: run1, FirstSeq: first, Chunks: chunks(first, n)}
}

func endAt(last uint64) *queue.End { return &queue.End{Run: run1, LastSeq: last} }

// client reads a feed as a response does and checks that nothing is missing or twice.
type client struct {
	t    *testing.T
	f    *feed
	next uint64
}

// read takes until sequence number upTo has come.
func (c *client) read(upTo uint64) {
	c.t.Helper()
	for c.next <= upTo {
		b := c.take(time.Minute)
		require.NotEmpty(c.t, b.Chunks, "waiting for chunk %d", c.next)
	}
}

func (c *client) take(wait time.Duration) batch {
	c.t.Helper()
	b, err := c.f.take(c.t.Context(), wait)
	require.NoError(c.t, err)
	for i, chunk := range b.Chunks {
		require.Equal(c.t, c.next, b.First+uint64(i))
		require.Equal(c.t, text(c.next), string(chunk))
		require.Equal(c.t, run1, b.Run)
		c.next++
	}
	return b
}

func (c *client) end() *queue.End {
	c.t.Helper()
	b := c.take(time.Minute)
	require.Empty(c.t, b.Chunks)
	require.NotNil(c.t, b.End)
	require.Equal(c.t, c.next, b.First)
	return b.End
}

// inBubble runs a test of a feed with a clock of its own; the client carries its t.
func inBubble(t *testing.T, fn func(f *feed, s *shelf, c *client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{}
		f := newFeed(&shelfReader{shelf: s}, queue.Run{}, 1)
		fn(f, s, &client{t: t, f: f, next: 1})
	})
}

func TestFeedPassesLiveChunksOn(t *testing.T) {
	t.Parallel()
	inBubble(t, func(f *feed, _ *shelf, c *client) {
		t := c.t
		f.push(live(1, 1))
		require.Len(t, c.take(time.Minute).Chunks, 1)
		f.push(live(2, 2))
		f.push(live(4, 1))
		require.Len(t, c.take(time.Minute).Chunks, 3, "what came together is handed out together")

		before := time.Now()
		require.Empty(t, c.take(5*time.Second).Chunks)
		require.Equal(t, 5*time.Second, time.Since(before), "nothing came, and the wait was kept")

		time.AfterFunc(time.Second, func() { f.push(live(5, 1)) })
		before = time.Now()
		c.read(5)
		require.Equal(t, time.Second, time.Since(before), "a chunk wakes the reader at once")
		f.finish(endAt(5))
		require.Nil(t, c.end().Err)
		f.push(live(6, 1))
		require.NotNil(t, c.take(time.Minute).End, "nothing follows an end")
	})
}

func TestFeedHearsOneRunAlone(t *testing.T) {
	t.Parallel()
	inBubble(t, func(f *feed, _ *shelf, c *client) {
		f.push(live(1, 1))
		other := live(2, 1)
		other.Run.Delivery = 2
		f.push(other)
		f.finish(&queue.End{Run: other.Run, LastSeq: 9})
		f.push(live(2, 1))
		c.read(2)
		require.Empty(c.t, c.take(time.Second))
	})
}

func TestFeedBeginsWhereItsClientWants(t *testing.T) {
	t.Parallel()
	inBubble(t, func(_ *feed, s *shelf, c *client) {
		c.f, c.next = newFeed(&shelfReader{shelf: s}, run1, 4), 4
		c.f.begin(queue.Run{Epoch: 9}) // it knows its run already
		s.keep(kept(1, 5))
		c.f.look()
		c.read(5)
		c.f.push(live(4, 4)) // partly known
		c.read(7)
		c.f.push(live(5, 1)) // wholly known
		require.Empty(c.t, c.take(time.Second))
	})
}

func TestFeedFillsGapsFromWhatIsKept(t *testing.T) {
	t.Parallel()
	inBubble(t, func(f *feed, s *shelf, c *client) {
		f.push(live(1, 2))
		f.push(live(5, 2)) // 3 and 4 got lost on their way
		s.keep(kept(1, 3))
		s.keep(queue.Block{Run: queue.Run{Delivery: 7}, FirstSeq: 4, Chunks: [][]byte{[]byte("of another run")}})
		s.keep(kept(4, 1))
		c.read(4)
		c.read(6)
		f.push(live(6, 1))
		f.push(live(7, 1)) // behind a repeat
		c.read(7)
	})
}

// A client that does not read costs no more than feedBytes, and gets everything later.
func TestFeedLetsGoOfWhatAClientDoesNotRead(t *testing.T) {
	t.Parallel()
	inBubble(t, func(f *feed, s *shelf, c *client) {
		t := c.t
		const n = 10_000
		for seq := uint64(1); seq <= n; seq++ {
			f.push(live(seq, 1))
			f.mu.Lock()
			require.LessOrEqual(t, f.bytes, feedBytes)
			f.mu.Unlock()
			if seq%100 == 0 {
				s.keep(kept(seq-99, 100))
			}
		}
		c.read(n)
		f.finish(endAt(n))
		c.end()
	})
}

// What was let go is kept half a second later. The reader gets it then, also when no
// further chunk comes that would show what is missing.
func TestFeedGoesOnLookingForWhatIsNotYetKept(t *testing.T) {
	t.Parallel()
	inBubble(t, func(f *feed, s *shelf, c *client) {
		t := c.t
		large := live(1, 2)
		f.push(large)
		f.push(&queue.Events{Run: run1, FirstSeq: 3, Chunks: [][]byte{make([]byte, feedBytes)}})
		time.AfterFunc(400*time.Millisecond, func() {
			b := kept(1, 2)
			b.Chunks = append(b.Chunks, []byte(text(3)))
			s.keep(b)
		})
		before := time.Now()
		c.read(3)
		require.LessOrEqual(t, time.Since(before), 500*time.Millisecond)
	})
}

func TestFeedEndsAfterWhatIsKept(t *testing.T) {
	t.Parallel()
	inBubble(t, func(f *feed, s *shelf, c *client) {
		f.push(live(1, 1))
		c.read(1)
		f.finish(endAt(4)) // before its last chunks, which never come live
		time.AfterFunc(time.Second, func() { s.keep(kept(1, 4)) })
		c.read(4)
		c.end()
	})
}

func TestFeedReadsTheEndItself(t *testing.T) {
	t.Parallel()
	inBubble(t, func(f *feed, s *shelf, c *client) {
		last := kept(1, 3)
		last.End = endAt(3)
		s.keep(last)
		f.look()
		c.read(3)
		require.Same(c.t, last.End, c.end())
	})
}

func TestFeedAbortEndsAfterWhatHasCome(t *testing.T) {
	t.Parallel()
	lost := &inference.Error{Code: inference.CodeWorkerLost}
	inBubble(t, func(f *feed, _ *shelf, c *client) {
		f.push(live(1, 2))
		c.read(2)
		f.push(live(3, 2))
		last := f.abort(queue.End{Err: lost})
		require.EqualValues(c.t, 4, last.LastSeq)
		require.Equal(c.t, run1, last.Run)
		f.push(live(5, 1))
		c.read(4)
		require.Equal(c.t, lost, c.end().Err)
		again := f.abort(queue.End{})
		require.Equal(c.t, last, again, "the first end counts")
	})
	inBubble(t, func(f *feed, _ *shelf, c *client) {
		require.Equal(c.t, queue.Run{}, f.abort(queue.End{Err: lost}).Run, "no run had begun")
		require.Equal(c.t, lost, c.end().Err)
	})
}

func TestFeedSaysThatChunksAreLostForGood(t *testing.T) {
	t.Parallel()
	inBubble(t, func(f *feed, _ *shelf, c *client) {
		t := c.t
		f.push(live(1, 1))
		c.read(1)
		f.push(live(5, 1))
		before := time.Now()
		for {
			_, err := f.take(t.Context(), 3*time.Second)
			if err == nil {
				require.Less(t, time.Since(before), 2*refillMost)
				continue
			}
			require.Equal(t, inference.CodeEventsLost, inference.AsError(err).Code)
			require.GreaterOrEqual(t, time.Since(before), refillMost)
			return
		}
	})
}

// Behind the end nothing more is kept, so nobody has to wait for it.
func TestFeedKnowsAtTheKeptEndWhatIsMissing(t *testing.T) {
	t.Parallel()
	inBubble(t, func(f *feed, s *shelf, c *client) {
		t := c.t
		s.keep(kept(1, 2))
		s.keep(queue.Block{Run: run1, FirstSeq: 5, Chunks: [][]byte{[]byte("5")}, End: endAt(5)})
		f.look()
		c.read(2)
		before := time.Now()
		var err error
		for err == nil {
			_, err = f.take(t.Context(), time.Second)
		}
		require.Equal(t, inference.CodeEventsLost, inference.AsError(err).Code)
		require.Less(t, time.Since(before), refillMost/2)
	})
}

// An id of a run that never was is told, not waited for.
func TestFeedRefusesARunThatNeverWas(t *testing.T) {
	t.Parallel()
	for name, kept := range map[string]queue.Block{
		"another run has begun": {Run: run1, FirstSeq: 1, Chunks: [][]byte{[]byte("1")}},
		"another run has ended": {Run: run1, FirstSeq: 1, End: endAt(0)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(_ *feed, s *shelf, c *client) {
				t := c.t
				f := newFeed(&shelfReader{shelf: s}, queue.Run{Epoch: 7, Delivery: 7}, 4)
				f.look()
				b, err := f.take(t.Context(), time.Second)
				require.NoError(t, err, "what is not kept yet may come")
				require.Empty(t, b)
				s.keep(kept)
				f.look()
				for err == nil {
					_, err = f.take(t.Context(), time.Second)
				}
				require.Equal(t, inference.CodeInvalidRequest, inference.AsError(err).Code)
				require.Equal(t, "Last-Event-ID", inference.AsError(err).Param)
			})
		})
	}
}

// A block that could not be kept leaves a hole; what stands behind it is not passed off
// as what follows.
func TestFeedNeverSkipsAHole(t *testing.T) {
	t.Parallel()
	inBubble(t, func(f *feed, s *shelf, c *client) {
		t := c.t
		s.keep(kept(1, 2))
		last := kept(5, 2)
		last.End = endAt(6)
		s.keep(last)
		f.look()
		c.read(2)
		var err error
		for err == nil {
			var b batch
			b, err = f.take(t.Context(), time.Second)
			require.Empty(t, b.Chunks)
			require.Nil(t, b.End)
		}
		require.Equal(t, inference.CodeEventsLost, inference.AsError(err).Code)
	})
}

// To look and find nothing is no loss: the answer may only be slow.
func TestFeedOfASlowAnswerIsNotLost(t *testing.T) {
	t.Parallel()
	for _, wait := range []time.Duration{50 * time.Millisecond, 3 * time.Second} {
		inBubble(t, func(f *feed, s *shelf, c *client) {
			t := c.t
			s.keep(kept(1, 1))
			f.look()
			c.read(1)
			for before := time.Now(); time.Since(before) < 10*refillMost; {
				require.Empty(t, c.take(wait))
				f.look()
			}
			s.keep(kept(2, 1))
			f.look()
			c.read(2)
		})
	}
}

func TestFeedOutlastsAServerThatIsAwayForAMoment(t *testing.T) {
	t.Parallel()
	inBubble(t, func(f *feed, s *shelf, c *client) {
		t := c.t
		s.fail(errors.New("server away"))
		f.push(live(3, 1))
		time.AfterFunc(refillMost/2, func() {
			s.keep(kept(1, 2))
			s.fail(nil)
		})
		c.read(3)

		s.fail(errors.New("server away for long"))
		f.push(live(9, 1))
		var err error
		for err == nil {
			_, err = f.take(t.Context(), time.Second)
		}
		require.Equal(t, inference.CodeEventsLost, inference.AsError(err).Code)
		require.ErrorContains(t, err, "away for long")
	})
}

func TestFeedHeedsItsContext(t *testing.T) {
	t.Parallel()
	inBubble(t, func(f *feed, s *shelf, c *client) {
		t := c.t
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := f.take(ctx, time.Minute)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		f.push(live(5, 1))
		_, err = f.take(ctx, time.Minute)
		require.ErrorIs(t, err, context.DeadlineExceeded, "while it waits for kept events")
		s.fail(errors.New("away"))
		_, err = f.take(ctx, time.Minute)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// Whatever gets lost on the way, in whatever rhythm both sides go: a client reads
// chunks 1 to n, each once and in order, and then the end.
func TestFeedLosesNothingWhateverHappens(t *testing.T) {
	t.Parallel()
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 1))
		inBubble(t, func(f *feed, s *shelf, c *client) {
			t := c.t
			n := 1 + r.Uint64N(400)
			var producer sync.WaitGroup
			pace := rand.New(rand.NewPCG(seed, 2))
			producer.Go(func() { produce(pace, f, s, n) })
			for c.next <= n {
				if r.IntN(4) == 0 {
					time.Sleep(time.Duration(r.IntN(700)) * time.Millisecond)
				}
				if b := c.take(time.Second); len(b.Chunks) == 0 {
					require.Nil(t, b.End, "seed %d: an end before chunk %d of %d", seed, c.next, n)
					f.look()
				}
			}
			for c.take(time.Second).End == nil {
				f.look()
			}
			producer.Wait()
		})
	}
}

// produce sends n chunks, of which some get lost or come twice, and keeps them in
// blocks a little later, with the end in the last one.
func produce(r *rand.Rand, f *feed, s *shelf, n uint64) {
	from := uint64(1)
	for seq := uint64(1); seq <= n; {
		m := min(1+r.Uint64N(5), n-seq+1)
		e := live(seq, m)
		if r.IntN(5) > 0 {
			f.push(e)
		}
		if r.IntN(10) == 0 {
			f.push(e)
		}
		if r.IntN(20) == 0 {
			f.push(live(max(1, seq-min(seq, 3)), 2))
		}
		seq += m
		if r.IntN(3) == 0 {
			time.Sleep(time.Duration(r.IntN(400)) * time.Millisecond)
		}
		if r.IntN(8) == 0 && seq <= n {
			s.keep(kept(from, seq-from))
			from = seq
		}
	}
	end := endAt(n)
	early := r.IntN(2) == 0
	if early {
		f.finish(end)
	}
	time.Sleep(time.Duration(r.IntN(1000)) * time.Millisecond)
	last := kept(from, n-from+1)
	last.End = end
	s.keep(last)
	if !early && r.IntN(2) == 0 {
		f.finish(end)
	}
}
