package queue

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

const resultJob = "aaaaaaaabbbbbbbbbbcccccccc"

func fullResult() *Result {
	e := fullEnd()
	e.JobID, e.bodyBytes = resultJob, 77
	return &Result{
		End: e, Lost: true, Lane: inference.LaneBatch, Tenant: "a team",
		Taken: time.UnixMicro(1_700_000_000_000_001).UTC(), CreatedAt: time.UnixMicro(1_600_000_000_000_000).UTC(),
	}
}

func passedResult() *Result {
	p := fullPassed()
	p.JobID = resultJob
	return &Result{Passed: p, Lane: inference.LaneBatch, Tenant: "t", CreatedAt: time.UnixMicro(5).UTC()}
}

func endOf(lane inference.Lane, body []byte) *Result {
	return &Result{
		End:  &End{JobID: NewJobID(testIngress, time.Now()), Run: Run{1, 1}, Worker: "worker01", Body: body},
		Lane: lane, Tenant: "t", Taken: time.UnixMicro(7).UTC(), CreatedAt: time.UnixMicro(5).UTC(),
	}
}

// keep gives the results to the server, which takes all of them.
func keep(t *testing.T, a *Answerer, results ...*Result) []string {
	t.Helper()
	ids := make([]string, len(results))
	for i, r := range results {
		ids[i] = r.JobID()
		require.NoError(t, a.Result(t.Context(), r))
	}
	return ids
}

func ends(lane inference.Lane, n int) []*Result {
	list := make([]*Result, n)
	for i := range list {
		list[i] = endOf(lane, []byte("{}"))
	}
	return list
}

func idsOf(results []*Result) []string {
	ids := make([]string, len(results))
	for i, r := range results {
		ids[i] = r.JobID()
	}
	return ids
}

// hand is one handing over of results, which waits for its answer.
type hand struct {
	results []*Result
	answer  chan<- error
}

// reading consumes the lane's results; each handing over comes through the channel.
func reading(t *testing.T, c *Conn, lane inference.Lane, most int) (hands <-chan hand, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ch, done := make(chan hand), make(chan struct{})
	go func() {
		defer close(done)
		c.ConsumeResults(ctx, lane, most, func(ctx context.Context, results []*Result) error {
			answer := make(chan error, 1)
			select {
			case ch <- hand{results, answer}:
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case err := <-answer:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(stop)
	return ch, stop
}

// takeAll says yes until so many results were handed over.
func takeAll(t *testing.T, hands <-chan hand, n int) []string {
	t.Helper()
	var ids []string
	for len(ids) < n {
		h := receive(t, hands)
		ids = append(ids, idsOf(h.results)...)
		h.answer <- nil
	}
	return ids
}

func resultsLeft(t *testing.T, c *Conn, want uint64) {
	t.Helper()
	eventually(t, func() bool {
		s, err := c.js.Stream(t.Context(), resultsStream)
		return err == nil && s.CachedInfo().State.Msgs == want
	}, "results left")
}

// resultsInHand tells how many results of the batch lane readers have, and how many of them
// not for the first time.
func resultsInHand(t *testing.T, c *Conn) (n, again int) {
	t.Helper()
	consumer, err := c.js.Consumer(t.Context(), resultsStream, string(inference.LaneBatch))
	require.NoError(t, err)
	return consumer.CachedInfo().NumAckPending, consumer.CachedInfo().NumRedelivered
}

func TestAResultComesAsItWasSaid(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a := answerer(t, c)
	full, passed, lost := fullResult(), passedResult(), endOf(inference.LaneBatch, []byte{})
	full.Lost, lost.Lost = false, true
	keep(t, a, full, passed, lost)
	body := bytes.Repeat([]byte("x"), 3<<20)
	large := endOf(inference.LaneBatch, body)
	keep(t, a, large)
	require.Nil(t, large.End.Body, "it does not travel in the message")
	hands, stop := reading(t, c, inference.LaneBatch, 10)
	var got []*Result
	for len(got) < 4 {
		h := receive(t, hands)
		got = append(got, h.results...)
		h.answer <- nil
	}
	large.End.Body = []byte{}
	require.Equal(t, []*Result{full, passed, lost, large}, got)
	resultsLeft(t, c, 0)
	stop()
	fetched, err := c.FetchBlob(t.Context(), got[3].End.BodyRef, 4<<20)
	require.NoError(t, err)
	require.Equal(t, body, fetched)
}

func TestResultsKeepToTheirLane(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a := answerer(t, c)
	background := keep(t, a, endOf(inference.LaneBackground, nil))
	batch := keep(t, a, endOf(inference.LaneBatch, nil))
	one, _ := reading(t, c, inference.LaneBackground, 10)
	other, _ := reading(t, c, inference.LaneBatch, 10)
	require.Equal(t, background, takeAll(t, one, 1))
	require.Equal(t, batch, takeAll(t, other, 1))
}

func TestTheSameResultIsKeptOnce(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a := answerer(t, c)
	r := endOf(inference.LaneBatch, []byte("{}"))
	passed := &Result{Passed: &Passed{JobID: r.JobID(), Run: r.End.Run}, Lane: r.Lane}
	keep(t, a, r, passed, r, passed)
	resultsLeft(t, c, 2)
	r.End.Run.Delivery++
	keep(t, a, r)
	resultsLeft(t, c, 3)
}

func TestAResultThatSaysNothingIsNotSent(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a := answerer(t, c)
	id := NewJobID(testIngress, time.Now())
	for name, r := range map[string]*Result{
		"nothing":          {Lane: inference.LaneBatch},
		"both":             {Lane: inference.LaneBatch, End: &End{JobID: id}, Passed: &Passed{JobID: id}},
		"passed and lost":  {Lane: inference.LaneBatch, Passed: &Passed{JobID: id}, Lost: true},
		"no job":           {Lane: inference.LaneBatch, End: &End{JobID: "x"}},
		"interactive lane": {Lane: inference.LaneInteractive, End: &End{JobID: id}},
	} {
		require.ErrorContains(t, a.Result(t.Context(), r), "says nothing", name)
	}
	resultsLeft(t, c, 0)
}

func TestAResultThatIsNotTaken(t *testing.T) {
	t.Parallel()
	c := connectTo(t, startServer(t))
	c.limits.ResultsBytes = 64 << 10
	a := answerer(t, c)
	r := endOf(inference.LaneBatch, bytes.Repeat([]byte("x"), 40<<10))
	require.ErrorIs(t, a.Result(t.Context(), r), ErrNoQueue)
	require.NoError(t, c.EnsureShared(t.Context()))
	keep(t, a, r)
	second := endOf(inference.LaneBatch, r.End.Body)
	err := a.Result(t.Context(), second)
	require.ErrorIs(t, err, ErrFull)
	require.NotErrorIs(t, err, ErrNoQueue)
	hands, _ := reading(t, c, inference.LaneBatch, 10)
	takeAll(t, hands, 1)
	resultsLeft(t, c, 0)
	keep(t, a, second)
	require.Equal(t, []string{second.JobID()}, takeAll(t, hands, 1), "what was refused was not known before")
}

func TestResultsComeInBoundedBatches(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a := answerer(t, c)
	ids := keep(t, a, ends(inference.LaneBatch, 25)...)
	hands, _ := reading(t, c, inference.LaneBatch, 10)
	var got []string
	for len(got) < len(ids) {
		h := receive(t, hands)
		require.LessOrEqual(t, len(h.results), 10)
		got = append(got, idsOf(h.results)...)
		h.answer <- nil
	}
	require.Equal(t, ids, got)
}

func TestBatchesOfResultsAreBoundedInBytes(t *testing.T) {
	t.Parallel()
	blob := func(size int) *arrival {
		return &arrival{Delivery: &Delivery{Delivery: 1}, result: &Result{End: &End{BodyRef: "b", bodyBytes: size}}}
	}
	inline := &arrival{Delivery: &Delivery{Delivery: 1}, result: &Result{End: &End{Body: make([]byte, 1<<20), Err: &inference.Error{Body: make([]byte, 1<<20)}}}}
	passed := &arrival{Delivery: &Delivery{Delivery: 1}, result: &Result{Passed: &Passed{}}}
	refused := &arrival{Delivery: &Delivery{Delivery: resultAlone}, result: passed.result}
	for name, c := range map[string]struct {
		waiting []*arrival
		want    []int
	}{
		"all fit":                          {[]*arrival{blob(8 << 20), inline, passed}, []int{3}},
		"just":                             {[]*arrival{blob(14 << 20), inline, passed}, []int{3}},
		"not quite":                        {[]*arrival{blob(14<<20 + 1), inline, passed}, []int{1, 2}},
		"one is larger":                    {[]*arrival{blob(60 << 20), passed, blob(60 << 20), passed}, []int{1, 1, 1, 1}},
		"nobody knows how large":           {[]*arrival{inline, blob(0), inline}, []int{1, 1, 1}},
		"so many":                          {slices.Repeat([]*arrival{passed}, 5), []int{4, 1}},
		"one was refused again and again":  {[]*arrival{passed, refused, passed, passed}, []int{1, 1, 2}},
		"two were refused again and again": {[]*arrival{refused, refused, passed}, []int{1, 1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &resultReader{most: 4, waiting: slices.Clone(c.waiting)}
			var got []int
			for n := len(r.next(t.Context())); n > 0; n = len(r.next(t.Context())) {
				got = append(got, n)
			}
			require.Equal(t, c.want, got)
		})
	}
}

func TestResultsThatAreNotStoredAllComeAgain(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a := answerer(t, c)
	ids := keep(t, a, ends(inference.LaneBatch, 6)...)
	hands, _ := reading(t, c, inference.LaneBatch, 2)
	first := receive(t, hands)
	refused := time.Now()
	first.answer <- errors.New("database is down")
	again := receive(t, hands)
	require.GreaterOrEqual(t, time.Since(refused), resultPause-10*time.Millisecond, "nothing comes before a pause is over")
	again.answer <- nil
	got := append(idsOf(again.results), takeAll(t, hands, len(ids)-len(again.results))...)
	require.ElementsMatch(t, ids, got, "those that were refused, too")
	resultsLeft(t, c, 0)
}

func TestResultsOfAStoppedReaderComeToAnother(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a := answerer(t, c)
	ids := keep(t, a, ends(inference.LaneBatch, 1)...)
	hands, stop := reading(t, c, inference.LaneBatch, 3)
	receive(t, hands) // without an answer
	ids = append(ids, keep(t, a, ends(inference.LaneBatch, 5)...)...)
	eventually(t, func() bool { n, _ := resultsInHand(t, c); return n == 3 }, "two more wait for the handler")
	stop()
	other, _ := reading(t, c, inference.LaneBatch, 100)
	began := time.Now()
	require.ElementsMatch(t, ids, takeAll(t, other, len(ids)))
	require.Less(t, time.Since(began), c.limits.AckWait/2, "no silence had to be waited for")
}

func TestResultsOfADeadReaderComeToAnother(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	c := connectTo(t, srv)
	c.limits.AckWait = time.Second
	require.NoError(t, c.EnsureShared(t.Context()))
	a := answerer(t, c)
	ids := keep(t, a, ends(inference.LaneBatch, 6)...)
	dying := connectTo(t, srv)
	hands, _ := reading(t, dying, inference.LaneBatch, 4)
	h := receive(t, hands)
	dying.nc.Close()
	h.answer <- nil // it stored them, and nobody heard of it
	other, _ := reading(t, c, inference.LaneBatch, 100)
	require.ElementsMatch(t, ids, takeAll(t, other, len(ids)))
	resultsLeft(t, c, 0)
}

func TestReadersShareTheResults(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	c, second := connectTo(t, srv), connectTo(t, srv)
	require.NoError(t, c.EnsureShared(t.Context()))
	hands, _ := reading(t, c, inference.LaneBatch, 2)
	others, _ := reading(t, second, inference.LaneBatch, 2)
	ids := keep(t, answerer(t, c), ends(inference.LaneBatch, 12)...)
	one, two := receive(t, hands), receive(t, others) // both at the same time
	one.answer <- nil
	two.answer <- nil
	got := append(idsOf(one.results), idsOf(two.results)...)
	for len(got) < len(ids) {
		var h hand
		select {
		case h = <-hands:
		case h = <-others:
		case <-time.After(soon):
			require.FailNow(t, "nothing came")
		}
		got = append(got, idsOf(h.results)...)
		h.answer <- nil
	}
	require.ElementsMatch(t, ids, got, "each to one of them")
	resultsLeft(t, c, 0)
}

func TestAnUnreadableResultIsBuried(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a := answerer(t, c)
	first := keep(t, a, endOf(inference.LaneBatch, nil))
	rawPublish(t, c, newRaw(resultSubject(inference.LaneBatch), []byte("{poison")))
	second := keep(t, a, endOf(inference.LaneBatch, nil))
	hands, _ := reading(t, c, inference.LaneBatch, 1) // its place becomes free again
	require.Equal(t, append(first, second...), takeAll(t, hands, 2))
	resultsLeft(t, c, 0)
	dead := deadLetters(t, c)
	require.Len(t, dead, 1)
	require.Equal(t, "{poison", string(dead[0].Data))
	require.Equal(t, errFrame.Error(), dead[0].Header.Get("Sluice-Reason"))
}

// With no place to bury it the message stays where it is.
func TestAnUnreadableResultIsNeverDropped(t *testing.T) {
	t.Parallel()
	c := setup(t)
	require.NoError(t, c.js.DeleteStream(t.Context(), deadStream))
	rawPublish(t, c, newRaw(resultSubject(inference.LaneBatch), []byte("{poison")))
	ids := keep(t, answerer(t, c), endOf(inference.LaneBatch, nil))
	hands, _ := reading(t, c, inference.LaneBatch, 10)
	require.Equal(t, ids, takeAll(t, hands, 1))
	resultsLeft(t, c, 1)
}

// Neither what the handler has nor what waits behind it is given to another reader while
// the handler takes its time.
func TestASlowHandlerKeepsItsResults(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	c := connectTo(t, srv)
	c.limits.AckWait = 600 * time.Millisecond
	require.NoError(t, c.EnsureShared(t.Context()))
	keep(t, answerer(t, c), ends(inference.LaneBatch, 1)...)
	hands, stop := reading(t, c, inference.LaneBatch, 3)
	slow := receive(t, hands)
	ids := keep(t, answerer(t, c), ends(inference.LaneBatch, 2)...) // they fit in the reader's hands
	eventually(t, func() bool { n, _ := resultsInHand(t, c); return n == 3 }, "all in its hands")
	others, _ := reading(t, c, inference.LaneBatch, 3)
	select {
	case <-others:
		require.FailNow(t, "another reader got a result that is in hand")
	case <-time.After(4 * c.limits.AckWait):
	}
	_, again := resultsInHand(t, c)
	require.Zero(t, again)
	slow.answer <- nil
	require.Equal(t, ids, takeAll(t, hands, 2))
	resultsLeft(t, c, 0)
	stop()
}

func TestResultsGoOnAfterALoss(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(context.Context, *Conn) error{
		"consumer":   func(ctx context.Context, c *Conn) error { return c.js.DeleteConsumer(ctx, resultsStream, "batch") },
		"stream":     func(ctx context.Context, c *Conn) error { return c.js.DeleteStream(ctx, resultsStream) },
		"connection": func(_ context.Context, c *Conn) error { return c.nc.ForceReconnect() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := startServer(t)
			c, worker := connectTo(t, srv), connectTo(t, srv)
			require.NoError(t, c.EnsureShared(t.Context()))
			a := answerer(t, worker)
			hands, _ := reading(t, c, inference.LaneBatch, 10)
			keep(t, a, endOf(inference.LaneBatch, nil))
			takeAll(t, hands, 1)
			resultsLeft(t, c, 0)
			require.NoError(t, lose(t.Context(), c))
			next := endOf(inference.LaneBatch, nil)
			began := time.Now()
			eventually(t, func() bool { return a.Result(t.Context(), next) == nil }, "a stream that takes the result")
			require.Equal(t, []string{next.JobID()}, takeAll(t, hands, 1))
			require.Less(t, time.Since(began), pullExpiry, "no open request had to run out")
		})
	}
}

func TestResultsOfAStreamThatIsMadeLater(t *testing.T) {
	t.Parallel()
	c := connectTo(t, startServer(t))
	hands, _ := reading(t, c, inference.LaneBackground, 10)
	a := answerer(t, c)
	r := endOf(inference.LaneBackground, []byte(strings.Repeat("x", 9)))
	eventually(t, func() bool { return a.Result(t.Context(), r) == nil }, "the reader makes the stream")
	require.Equal(t, []string{r.JobID()}, takeAll(t, hands, 1))
}
