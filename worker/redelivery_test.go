package worker

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/providers"
)

func TestDrainFinishesWhatIsInHand(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		<-gate
		return answer(`{}`)
	})
	_, stop := r.start("worker01")
	t.Cleanup(open) // also where the test fails: a stop waits for the call
	leaving := make(chan queue.Presence, 100)
	l, err := r.conn.Watch(func(p queue.Presence) {
		if p.Leaving {
			leaving <- p
		}
	})
	require.NoError(t, err)
	defer l.Close()
	in, queued := newJob(false), newJob(false)
	r.publish(in)
	require.Eventually(t, func() bool { return r.script.count() == 1 }, soon, time.Millisecond)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	require.Equal(t, "worker01", next(t, leaving).Worker)
	r.publish(queued)
	open()
	e := next(t, r.ends)
	require.Equal(t, in.ID, e.JobID)
	require.Nil(t, e.Err)
	r.settle(e)
	next(t, stopped)
	require.Eventually(t, func() bool { return r.depth() == queue.Depth{Waiting: 1} }, soon, 5*time.Millisecond)
	require.Equal(t, 1, r.script.count(), "new work goes elsewhere")
}

func TestADrainOutOfTimeGivesTheJobToAnother(t *testing.T) {
	t.Parallel()
	started := make(chan struct{}, 10)
	r := setup(t, func(ctx context.Context, n int, _ providers.Call, emit providers.Emit) (*providers.Response, error) {
		if n <= 2 {
			if emit != nil {
				_ = emit([][]byte{[]byte("begun")})
			}
			started <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return answer(`{}`)
	})
	_, stop := r.start("worker01", func(o *Options) { o.DrainTimeout = 10 * time.Millisecond })
	plain, streamed := newJob(false), newJob(true)
	r.publish(plain)
	r.publish(streamed)
	next(t, started)
	next(t, started)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	e := next(t, r.ends)
	require.Equal(t, streamed.ID, e.JobID, "a begun stream cannot be given to another: it ends with an error")
	require.Equal(t, inference.CodeWorkerLost, e.Err.Code)
	r.settle(e)
	next(t, stopped)

	r.start("worker02")
	require.Equal(t, plain.ID, next(t, r.claims).JobID)
	for e = next(t, r.ends); e.JobID != plain.ID; e = next(t, r.ends) {
	}
	require.Nil(t, e.Err)
	require.Equal(t, queue.Run{Epoch: 0, Delivery: 2}, e.Run)
	r.settle(e)
	r.empty()
}

func TestARedeliveredJobAsksItsIngress(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	r.verdicts = []queue.Verdict{queue.VerdictWait, queue.VerdictRun}
	j := newJob(false)
	r.redeliver(j, 1)
	r.start("worker01")
	first, second := next(t, r.claims), next(t, r.claims)
	require.Equal(t, queue.Claim{JobID: j.ID, Run: queue.Run{Delivery: 2}, Worker: "worker01", Place: queue.Place{Candidates: j.Candidates, Seq: 1}}, first)
	require.Equal(t, 3, second.Run.Delivery)
	e := next(t, r.ends)
	require.Equal(t, second.Run, e.Run)
	r.settle(e)
	r.empty()
	require.Equal(t, 1, r.script.count())
}

func TestAJobThatIsNotWantedIsDropped(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	r.verdicts = []queue.Verdict{queue.VerdictDrop}
	r.redeliver(newJob(false), 1)
	r.start("worker01")
	next(t, r.claims)
	r.empty()
	require.Zero(t, r.script.count())
	require.Empty(t, r.ends)
}

func TestAnAnswerWhoseIngressIsGoneIsAccountedFor(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{"large":"` + strings.Repeat("x", 1<<20) + `"}`)
	})
	r.consumeRecords()
	j := orphan(false)
	r.publishOrphan(j)
	r.start("worker01")
	row := r.row(j.ID)
	require.Equal(t, inference.OutcomeAbandoned, row.Outcome)
	require.Equal(t, "m-served", row.ModelServed)
	require.EqualValues(t, 3, row.Usage.CompletionTokens)
	require.Equal(t, "team", row.Tenant)
	r.empty()
	_, err := r.conn.FetchBlob(t.Context(), j.ID+".0.1.answer", 4<<20)
	require.Error(t, err, "nobody will fetch the answer")
}

// The ingress may only be away for a moment: one question without an answer is not
// enough to throw an answer away.
func TestAnIngressThatComesBackGetsItsAnswer(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	r.dispatch.Close()
	j := newJob(false)
	require.NoError(t, r.dispatch.Publish(j, ""))
	r.start("worker01")
	require.Eventually(t, func() bool { return r.script.count() == 1 }, soon, time.Millisecond)
	<-time.After(settleAsk*settleRepeat + settleRepeat/2)
	back, err := r.conn.NewDispatcher(testIngress, r)
	require.NoError(t, err)
	defer back.Close()
	e := next(t, r.ends)
	require.Equal(t, j.ID, e.JobID)
	r.settle(e)
	r.empty()
}

func TestOrphansThatWereLostAlready(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		stream bool
		kept   int  // chunks that are kept, each in a block of its own
		ended  bool // and their end is kept, too
		want   inference.ErrorCode
	}{
		"plain":                        {false, 0, false, inference.CodeWorkerLost},
		"stream that had begun":        {true, 20, false, inference.CodeWorkerLost},
		"stream that was sent wholly":  {true, 20, true, ""},
		"stream that nobody has begun": {true, 0, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, func(_ context.Context, _ int, _ providers.Call, emit providers.Emit) (*providers.Response, error) {
				if err := emit([][]byte{[]byte("x")}); err != nil {
					return nil, err
				}
				return answer("")
			})
			r.consumeRecords()
			j := orphan(c.stream)
			rec := r.conn.NewRecorder(j, queue.Run{Delivery: 1}, 1)
			for i := range c.kept {
				rec.Add([][]byte{[]byte("chunk")})
				if i < c.kept-1 {
					require.NoError(t, rec.Finish(t.Context(), nil))
				}
			}
			if c.ended {
				require.NoError(t, rec.Finish(t.Context(), &queue.End{JobID: j.ID, Run: queue.Run{Delivery: 1}, LastSeq: uint64(c.kept), Model: "m-kept", Attempts: 1, Usage: inference.Usage{PromptTokens: 77, Known: true}}))
			} else {
				require.NoError(t, rec.Finish(t.Context(), nil))
			}
			r.redeliverOrphan(j, 1)
			r.start("worker01")
			row := r.row(j.ID)
			require.Equal(t, inference.OutcomeAbandoned, row.Outcome)
			require.Equal(t, c.want, row.ErrorCode)
			r.empty()
			switch {
			case c.ended:
				require.EqualValues(t, 77, row.Usage.PromptTokens, "what the lost worker had told")
				require.Zero(t, r.script.count())
			case c.stream && c.kept == 0:
				require.Equal(t, 1, r.script.count(), "it may still be read through another ingress")
			default:
				require.Zero(t, r.script.count())
			}
			if c.stream && c.kept > 0 {
				end := lastEnd(t, r.conn, j.ID)
				require.EqualValues(t, c.kept, end.LastSeq, "readers come to an end, after all that is kept")
				require.Equal(t, c.want != "", end.Err != nil)
			}
		})
	}
}
