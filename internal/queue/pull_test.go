package queue

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func TestPullerTakesNoMoreThanItsSlots(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	p, k := pull(t, c, 2)
	for range 5 {
		require.NoError(t, publish(t, d, e, testJob("{}")).err)
	}
	first, second := receive(t, k.ch), receive(t, k.ch)
	hasDepth(t, c, Depth{Waiting: 3, Running: 2})

	first.Ack()
	p.Free()
	third := receive(t, k.ch)
	hasDepth(t, c, Depth{Waiting: 2, Running: 2})
	require.Empty(t, k.ch, "no job without a slot")
	second.Ack()
	third.Ack()
	p.Free()
	p.Free()
	receive(t, k.ch).Ack()
	receive(t, k.ch).Ack()
	hasDepth(t, c, Depth{})
}

// While jobs are still on their way for most of the free slots no further request is
// made; once they have come, one is, and no slot stays without.
func TestPullerAsksForEverySlot(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	came := make(chan *Delivery, 10)
	p, err := c.NewPuller(testProvider, inference.LaneInteractive, 4, func(d *Delivery) { came <- d }, nil) // nobody runs it: no tick helps
	require.NoError(t, err)
	defer p.Stop()
	for range 2 {
		require.NoError(t, publish(t, d, e, testJob("{}")).err)
		receive(t, came)
	}
	p.Free()
	for range 3 {
		require.NoError(t, publish(t, d, e, testJob("{}")).err)
		receive(t, came)
	}
}

// A request for jobs that is made twice, because the first one was thought lost, may
// bring more jobs than there are slots: those go back at once.
func TestJobsBeyondTheSlotsGoBack(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	p, k := pull(t, c, 1)
	p.Reset() // asks a second time while the first request is still open
	require.NoError(t, publish(t, d, e, testJob("{}")).err)
	require.NoError(t, publish(t, d, e, testJob("{}")).err)
	receive(t, k.ch)
	cons, err := c.js.Consumer(t.Context(), jobStream(testProvider), string(inference.LaneInteractive))
	require.NoError(t, err)
	eventually(t, func() bool {
		info, err := cons.Info(t.Context())
		require.NoError(t, err)
		return info.Delivered.Consumer >= 2
	}, "both handed out")
	require.Empty(t, k.ch, "the second one went back")

	p.Free()
	require.GreaterOrEqual(t, receive(t, k.ch).Delivery, 2)
}

func TestStopGivesBackWhatIsOnItsWay(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	p, _ := pull(t, c, 4)
	p.Stop()
	p.Stop() // a second one has nothing to do
	p.Free() // asks for nothing any more
	j := testJob("{}")
	require.NoError(t, publish(t, d, e, j).err)
	started := time.Now()
	_, k := pull(t, c, 1)
	got, _, err := receive(t, k.ch).Job()
	require.NoError(t, err)
	require.Equal(t, j.ID, got.ID)
	require.Less(t, time.Since(started), c.limits.AckWait/2, "no silence had to be waited for")
}

// A delivery that reaches a stopped puller is on its way already; it is for another.
func TestAStoppedPullerSendsBackAtOnce(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	p, k := pull(t, c, 1)
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	j := testJob("{}")
	require.NoError(t, publish(t, d, e, j).err)
	_, other := pull(t, c, 1)
	got := receive(t, other.ch)
	require.Empty(t, k.ch)
	require.GreaterOrEqual(t, got.Delivery, 1)
}

func TestPullerSaysThatItsConsumerIsGone(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	_, k := pull(t, c, 1)
	require.NoError(t, c.js.DeleteConsumer(t.Context(), jobStream(testProvider), string(inference.LaneInteractive)))
	receive(t, k.lost)

	// When it is there again, Run asks anew without being told.
	require.NoError(t, c.EnsureConsumer(t.Context(), testProvider, 64))
	require.NoError(t, publish(t, d, e, testJob("{}")).err)
	receive(t, k.ch)
}

func TestPullerWithoutAConsumerFromTheStart(t *testing.T) {
	t.Parallel()
	c := connectTo(t, startServer(t))
	_, k := pull(t, c, 1)
	receive(t, k.lost)
}

func TestPullerReadsTheServersStatus(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		header    nats.Header
		requested int
		lost      bool
	}{
		"heartbeat":        {nats.Header{"Status": {"100"}}, 5, false},
		"some expired":     {nats.Header{"Status": {"408"}, "Nats-Pending-Messages": {"2"}}, 3, false},
		"all expired":      {nats.Header{"Status": {"408"}}, 0, false},
		"more than asked":  {nats.Header{"Status": {"408"}, "Nats-Pending-Messages": {"99"}}, 0, false},
		"consumer deleted": {nats.Header{"Status": {"409"}}, 0, true},
		"no responders":    {nats.Header{"Status": {"503"}}, 0, true},
		"odd number":       {nats.Header{"Status": {"404"}, "Nats-Pending-Messages": {"-1"}}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lost := false
			p := &Puller{free: 5, requested: 5, lost: func() { lost = true }}
			p.heard(&nats.Msg{Header: c.header})
			require.Equal(t, c.requested, p.requested)
			require.Equal(t, c.lost, lost)

			lost, p.stopped = false, true
			p.heard(&nats.Msg{Header: c.header})
			require.False(t, lost, "a stopped puller needs no consumer")
		})
	}
}

// The server tells of a request that expired. If it does not, the request was lost,
// and the puller forgets it by itself.
func TestPullerForgetsARequestThatNobodyAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &Puller{free: 3, requested: 3, lastHeard: time.Now()}
		done := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer close(done)
			p.Run(ctx)
		}()
		time.Sleep(pullExpiry)
		synctest.Wait()
		p.mu.Lock()
		require.Equal(t, 3, p.requested, "the server may still answer")
		p.mu.Unlock()
		time.Sleep(7 * time.Second)
		synctest.Wait()
		p.mu.Lock()
		require.Zero(t, p.requested)
		p.mu.Unlock()
		cancel()
		<-done
	})
}

func TestDeliveryWords(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	p, k := pull(t, c, 1)
	j := testJob(`{"a":1}`)
	require.NoError(t, publish(t, d, e, j).err)

	first := receive(t, k.ch)
	require.Equal(t, 1, first.Delivery)
	got, ref, err := first.Job()
	require.NoError(t, err)
	require.Empty(t, ref)
	require.Equal(t, j, got)
	first.Nak(0)
	p.Free()
	second := receive(t, k.ch)
	require.Equal(t, 2, second.Delivery, "put back, it comes again at once")

	put := time.Now()
	second.Nak(300 * time.Millisecond)
	p.Free()
	third := receive(t, k.ch)
	require.Equal(t, 3, third.Delivery)
	require.GreaterOrEqual(t, time.Since(put), 290*time.Millisecond, "not before its delay")
	third.Ack()
	hasDepth(t, c, Depth{})
}

func TestProgressKeepsAJob(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	c := connectTo(t, srv)
	c.limits.AckWait = 500 * time.Millisecond
	require.NoError(t, c.EnsureShared(t.Context()))
	_, err := c.EnsureQueue(t.Context(), testProvider, 8)
	require.NoError(t, err)
	require.NoError(t, c.EnsureConsumer(t.Context(), testProvider, 64))
	d, e := dispatcher(t, c)
	_, k := pull(t, c, 2)
	require.NoError(t, publish(t, d, e, testJob("{}")).err)
	held := receive(t, k.ch)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 30 { // three times as long as silence would be suffered
		<-tick.C
		held.Progress()
	}
	require.Empty(t, k.ch, "nobody else got the job while it was worked on")
	again := receive(t, k.ch)
	require.Equal(t, 2, again.Delivery, "silence hands it to another")
	again.Ack()
}

func TestBuryKeepsTheJobAndItsReason(t *testing.T) {
	t.Parallel()
	c := setup(t)
	rawPublish(t, c, &nats.Msg{Subject: jobSubject(testProvider, inference.LaneInteractive), Header: nats.Header{hdrJob: {"odd"}, hdrMsgID: {"m1"}}, Data: []byte("body")})
	_, k := pull(t, c, 1)
	d := receive(t, k.ch)
	_, _, err := d.Job()
	require.Error(t, err)
	require.NoError(t, d.Bury(t.Context(), testProvider, err.Error()))
	hasDepth(t, c, Depth{}) // the job is out of the queue
	dead := deadLetters(t, c)
	require.Len(t, dead, 1)
	require.Equal(t, "body", string(dead[0].Data))
	require.Equal(t, "odd", dead[0].Header.Get(hdrJob))
	require.Equal(t, err.Error(), dead[0].Header.Get("Sluice-Reason"))
	require.Equal(t, "1", dead[0].Header.Get("Sluice-Deliveries"))
}

func TestAJobThatCannotBeBuriedStays(t *testing.T) {
	t.Parallel()
	c := setup(t)
	require.NoError(t, c.js.DeleteStream(t.Context(), deadStream))
	rawPublish(t, c, newRaw(jobSubject(testProvider, inference.LaneInteractive), []byte("body")))
	_, k := pull(t, c, 1)
	require.Error(t, receive(t, k.ch).Bury(t.Context(), testProvider, "odd"))
	d := depth(t, c)
	require.Equal(t, 1, d.Waiting+d.Running)
}
