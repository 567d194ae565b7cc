package worker

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/providers"
)

func TestAJobIsAcknowledgedOnlyWhenItIsSettled(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{"a":1}`)
	})
	w, _ := r.start("worker01")
	require.Equal(t, []string{testName}, w.Serves())
	require.True(t, w.Connected())
	j := newJob(false)
	r.publish(j)
	e := next(t, r.ends)
	require.Equal(t, j.ID, e.JobID)
	require.Equal(t, queue.Run{Epoch: 0, Delivery: 1}, e.Run)
	require.Equal(t, `{"a":1}`, string(e.Body))
	require.Equal(t, "m-served", e.Model)
	require.Equal(t, 1, e.Attempts)
	require.Nil(t, e.Err)
	require.Equal(t, inference.Usage{PromptTokens: 2, CompletionTokens: 3, Known: true}, e.Usage)
	require.Equal(t, providers.Call{Kind: inference.KindChat, Model: "m", Body: j.Body, RequestID: "req"}, r.script.calls[0])

	require.Equal(t, e.JobID, next(t, r.ends).JobID, "said again until it is taken")
	require.Equal(t, queue.Depth{Running: 1}, r.depth())
	r.settle(e)
	r.empty()
}

func TestRetries(t *testing.T) {
	t.Parallel()
	r := setup(t, func(_ context.Context, n int, _ providers.Call, _ providers.Emit) (*providers.Response, error) {
		if n < 3 {
			return nil, errPassing
		}
		return answer(`{}`)
	})
	r.start("worker01")
	j := newJob(false)
	j.Attempts = 4
	r.publish(j)
	e := next(t, r.ends)
	require.Nil(t, e.Err)
	require.Equal(t, 4+3, e.Attempts)
	r.settle(e)
	r.empty()
	require.Equal(t, 3, r.script.count())
}

func TestRetriesEnd(t *testing.T) {
	t.Parallel()
	r := setup(t, func(_ context.Context, _ int, call providers.Call, emit providers.Emit) (*providers.Response, error) {
		if emit == nil {
			return nil, errPassing
		}
		if err := emit([][]byte{[]byte("1"), []byte("2")}); err != nil {
			return nil, err
		}
		_ = emit(nil)
		return &providers.Response{Model: call.Model, Usage: inference.Usage{PromptTokens: 5, Known: true}}, errPassing
	})
	r.start("worker01")
	plain := newJob(false)
	r.publish(plain)
	e := next(t, r.ends)
	require.Equal(t, inference.CodeUpstreamError, e.Err.Code)
	require.Equal(t, 3, e.Attempts, "as often as allowed")
	r.settle(e)
	r.empty()

	// After the first chunk a call is never made again.
	streamed := newJob(true)
	r.publish(streamed)
	events := next(t, r.events)
	require.Equal(t, [][]byte{[]byte("1"), []byte("2")}, events.Chunks)
	require.EqualValues(t, 1, events.FirstSeq)
	for e = next(t, r.ends); e.JobID != streamed.ID; e = next(t, r.ends) {
	}
	require.Equal(t, inference.CodeUpstreamError, e.Err.Code)
	require.Equal(t, 1, e.Attempts)
	require.EqualValues(t, 2, e.LastSeq)
	require.EqualValues(t, 5, e.Usage.PromptTokens, "what was used is told also of a failure")
	r.settle(e)
	r.empty()
	require.Equal(t, 4, r.script.count())
}

func TestAStreamIsSentAndKept(t *testing.T) {
	t.Parallel()
	r := setup(t, func(_ context.Context, _ int, call providers.Call, emit providers.Emit) (*providers.Response, error) {
		reused := []byte("chunk 0")
		for i := range 5 {
			reused[6] = byte('1' + i) // the slices are valid only during the call
			if err := emit([][]byte{reused}); err != nil {
				return nil, err
			}
		}
		return &providers.Response{Model: call.Model}, nil
	})
	r.start("worker01")
	j := newJob(true)
	r.publish(j)
	e := next(t, r.ends)
	require.EqualValues(t, 5, e.LastSeq)
	for seq := uint64(1); seq <= 5; seq++ {
		ev := next(t, r.events)
		require.Equal(t, seq, ev.FirstSeq)
		require.Equal(t, "chunk "+string(rune('0'+seq)), string(ev.Chunks[0]))
	}
	r.settle(e)
	r.empty()
	kept := r.conn.NewKeptReader(j.ID)
	var all []string
	var end *queue.End
	for {
		blocks, err := kept.Next(t.Context())
		require.NoError(t, err)
		if len(blocks) == 0 {
			break
		}
		for _, b := range blocks {
			for _, c := range b.Chunks {
				all = append(all, string(c))
			}
			end = b.End
		}
	}
	require.Equal(t, []string{"chunk 1", "chunk 2", "chunk 3", "chunk 4", "chunk 5"}, all)
	require.NotNil(t, end)
	tenant, _ := kept.Found()
	require.Equal(t, "team", tenant)
}

func TestCancelStopsARunningCall(t *testing.T) {
	t.Parallel()
	r := setup(t, hang)
	r.start("worker01")
	j := newJob(false)
	r.publish(j)
	require.Eventually(t, func() bool { return r.script.count() == 1 }, soon, time.Millisecond)
	require.Equal(t, j.ID, next(t, r.held).Jobs[0].JobID, "the ingress is told soon who has the job")
	require.NoError(t, r.dispatch.Cancel(t.Context(), j.ID, testName, 0))
	e := next(t, r.ends)
	require.Equal(t, inference.CodeCancelled, e.Err.Code)
	r.settle(e)
	r.empty()
}

func TestDeadlineStopsARunningCall(t *testing.T) {
	t.Parallel()
	r := setup(t, hang)
	r.start("worker01")
	j := newJob(false)
	j.Deadline = time.Now().Add(200 * time.Millisecond)
	r.publish(j)
	e := next(t, r.ends)
	require.Equal(t, inference.CodeDeadlineExceeded, e.Err.Code)
	r.settle(e)

	late := newJob(false)
	late.Deadline = time.Now().Add(-time.Second)
	r.publish(late)
	for e = next(t, r.ends); e.JobID != late.ID; e = next(t, r.ends) {
	}
	require.Equal(t, inference.CodeDeadlineExceeded, e.Err.Code)
	r.settle(e)
	r.empty()
	require.Equal(t, 1, r.script.count(), "a job that comes too late costs no call")
}

func TestLargeBodies(t *testing.T) {
	t.Parallel()
	large := `{"x":"` + strings.Repeat("y", 1<<19) + `"}`
	r := setup(t, func(_ context.Context, _ int, call providers.Call, _ providers.Emit) (*providers.Response, error) {
		return answer(string(call.Body))
	})
	r.start("worker01")
	j := newJob(false)
	j.Body = []byte(large)
	ref, err := r.dispatch.StoreBody(t.Context(), j)
	require.NoError(t, err)
	require.NoError(t, r.dispatch.Publish(j, ref))
	e := next(t, r.ends)
	require.Nil(t, e.Err)
	body, err := r.conn.FetchBlob(t.Context(), e.BodyRef, 1<<20)
	require.NoError(t, err)
	require.Equal(t, large, string(body))
	r.settle(e)
	r.empty()

	// A body that is not there any more is an error of ours, not a call without it.
	lost := newJob(false)
	require.NoError(t, r.dispatch.Publish(lost, "nowhere"))
	for e = next(t, r.ends); e.JobID != lost.ID; e = next(t, r.ends) {
	}
	require.Equal(t, inference.CodeInternal, e.Err.Code)
	r.settle(e)
	r.empty()
	require.Equal(t, 1, r.script.count())
}

func TestAMessageThatIsNoJobIsBuried(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	bad := newJob(false)
	bad.Model = "m"
	bad.Candidates = append(bad.Candidates, inference.Candidate{}) // no provider: it cannot be read back
	require.NoError(t, r.dispatch.Publish(bad, ""))
	r.start("worker01", func(o *Options) { o.Members[0].Slots = 1 })
	r.empty()
	good := newJob(false)
	r.publish(good)
	e := next(t, r.ends)
	require.Equal(t, good.ID, e.JobID, "the slot is free again")
	r.settle(e)
	r.empty()
}

func TestSlotsBoundTheCalls(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	running, most := 0, 0
	gate := make(chan struct{})
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		mu.Lock()
		running++
		most = max(most, running)
		mu.Unlock()
		<-gate
		mu.Lock()
		running--
		mu.Unlock()
		return answer(`{}`)
	})
	r.start("worker01", func(o *Options) { o.Members[0].Slots = 2 })
	const jobs = 12
	for range jobs {
		r.publish(newJob(false))
	}
	require.Eventually(t, func() bool { return r.script.count() == 2 }, soon, time.Millisecond)
	close(gate)
	for seen := map[string]bool{}; len(seen) < jobs; {
		e := next(t, r.ends)
		seen[e.JobID] = true
		r.settle(e)
	}
	r.empty()
	require.Equal(t, 2, most)
}

func TestPresenceTellsTheModels(t *testing.T) {
	t.Parallel()
	r := setup(t, hang)
	heard := make(chan queue.Presence, 1000)
	l, err := r.conn.Watch(func(p queue.Presence) { heard <- p })
	require.NoError(t, err)
	defer l.Close()
	r.start("worker01")
	for p := next(t, heard); ; p = next(t, heard) {
		if len(p.Providers) == 1 && slices.Equal(p.Providers[0].Models, []string{"m"}) {
			require.Equal(t, queue.ProviderPresence{
				Name: testName, Models: []string{"m"}, MaxQueued: 100, Concurrency: 16, Slots: 4,
				Traits: []inference.ModelTraits{
					{Models: []string{"blind"}, Traits: inference.Traits{Chat: true}},
					{Models: []string{"*"}, Traits: allTraits},
				},
			}, p.Providers[0])
			return
		}
	}
}

func TestAWorkerWithoutModelsServesAllTheSame(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	r.script.caps = errors.New("not reachable")
	r.start("worker01")
	r.publish(newJob(false))
	r.settle(next(t, r.ends))
	r.empty()
}

func TestAWorkerThatCannotBegin(t *testing.T) {
	t.Parallel()
	r := setup(t, hang)
	c := r.connect()
	c.Close()
	w := New(Options{ID: "w", Conn: c, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: discard(), Members: []Member{{Name: testName, Provider: r.script}}})
	require.Error(t, w.Run(t.Context()))
	require.Empty(t, w.Serves())
}

func TestDroppedFieldsTravelWithTheAnswer(t *testing.T) {
	t.Parallel()
	r := setup(t, func(_ context.Context, _ int, call providers.Call, emit providers.Emit) (*providers.Response, error) {
		call.Dropped([]string{"seed"})
		if emit == nil {
			return answer(`{}`)
		}
		return nil, errors.Join(emit([][]byte{[]byte(`{"n":1}`)}), emit([][]byte{[]byte(`{"n":2}`)}))
	})
	r.start("worker01")
	r.publish(newJob(false))
	e := next(t, r.ends)
	require.Equal(t, []string{"seed"}, e.Dropped)
	r.settle(e)
	r.publish(newJob(true))
	require.Equal(t, []string{"seed"}, next(t, r.events).Dropped)
	require.Empty(t, next(t, r.events).Dropped, "once is enough")
	e = next(t, r.ends)
	require.Equal(t, []string{"seed"}, e.Dropped)
	r.settle(e)
}

// keyed is a provider that knows how its keys stand.
type keyed struct{ providers.Provider }

func (keyed) Keys() []providers.KeyState {
	return []providers.KeyState{{State: providers.KeyOK}, {State: providers.KeyRefused}, {State: providers.KeyOK}}
}

func TestUpstreamKeysAreShown(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	NewMetrics(reg).provider("p").upstreamKeys(keyed{})
	families, err := reg.Gather()
	require.NoError(t, err)
	got := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "sluice_upstream_keys" {
				got[m.GetLabel()[1].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	require.Equal(t, map[string]float64{providers.KeyOK: 2, providers.KeyCooling: 0, providers.KeyRefused: 1}, got)
}

// Whoever listens has heard of a worker before it takes anything, so that one that is lost
// at once is missed.
func TestAWorkerGreetsBeforeItTakesJobs(t *testing.T) {
	t.Parallel()
	r := setup(t, hang)
	heard := make(chan queue.Presence, 100)
	l, err := r.conn.Watch(func(p queue.Presence) { heard <- p })
	require.NoError(t, err)
	defer l.Close()
	r.start("worker01")
	require.Equal(t, queue.Presence{Worker: "worker01"}, next(t, heard), "it takes nothing yet")
	require.NotEmpty(t, next(t, heard).Providers)
}
