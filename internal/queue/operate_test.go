package queue

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func discarded() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestDepthsOfAllLanes(t *testing.T) {
	t.Parallel()
	c := setup(t)
	none, err := c.Depths(t.Context(), "nobody")
	require.NoError(t, err)
	require.Equal(t, []LaneDepth{{Lane: "interactive"}, {Lane: "background"}, {Lane: "batch"}}, none)

	d, e := dispatcher(t, c)
	began := time.Now().Add(-time.Second)
	for range 3 {
		publish(t, d, e, testJob("body"))
	}
	_, err = c.EnsureStored(t.Context(), testProvider)
	require.NoError(t, err)
	line := testJob("line")
	line.Lane = inference.LaneBatch
	require.NoError(t, c.PublishStored(t.Context(), []*inference.Job{line})[0].Err)
	_, k := pull(t, c, 1)
	taken := receive(t, k.ch)
	var depths []LaneDepth
	eventually(t, func() bool {
		depths, err = c.Depths(t.Context(), testProvider)
		return err == nil && depths[0].Running == 1
	}, "one is taken")
	require.Equal(t, 2, depths[0].Waiting)
	require.EqualValues(t, 8, depths[0].Bound)
	require.Positive(t, depths[0].Bytes)
	require.WithinRange(t, depths[0].Oldest, began, time.Now().Add(time.Second))
	require.True(t, depths[0].Oldest.After(taken.Published), "of those that wait")
	require.Equal(t, LaneDepth{Lane: "background", Bound: 1000, Bytes: depths[2].Bytes}, depths[1])
	require.Equal(t, 1, depths[2].Waiting)
}

func TestQueuedListsALanesMessages(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	var want []string
	for range 3 {
		j := testJob("body")
		publish(t, d, e, j)
		want = append(want, j.ID)
	}
	rawPublish(t, c, newRaw(jobSubject(testProvider, inference.LaneInteractive), []byte("no job")))
	_, k := pull(t, c, 1)
	receive(t, k.ch)

	jobs, next, err := c.Queued(t.Context(), testProvider, inference.LaneInteractive, 0, time.Time{}, 3)
	require.NoError(t, err)
	require.Len(t, jobs, 3)
	for i, q := range jobs {
		require.Equal(t, want[i], q.Job.ID)
		require.Empty(t, q.Job.Body)
		require.Equal(t, i == 0, q.Given)
	}
	rest, end, err := c.Queued(t.Context(), testProvider, inference.LaneInteractive, next, time.Time{}, 3)
	require.NoError(t, err)
	require.Zero(t, end)
	require.Len(t, rest, 1)
	require.Nil(t, rest[0].Job, "it cannot be read")
	old, _, err := c.Queued(t.Context(), testProvider, inference.LaneInteractive, 0, jobs[1].At, 3)
	require.NoError(t, err)
	require.Len(t, old, 1, "those that came before")
	none, _, err := c.Queued(t.Context(), "nobody", inference.LaneBatch, 0, time.Time{}, 3)
	require.NoError(t, err)
	require.Empty(t, none)
}

func TestPurgesReachTheirIngressAlone(t *testing.T) {
	t.Parallel()
	c := setup(t)
	places := []StoredPlace{{JobID: "a", Seq: 1}, {JobID: "b", Seq: 2}}
	_, err := c.AskPurge(t.Context(), testIngress, testProvider, places)
	require.ErrorIs(t, err, ErrNoIngress)
	ear, err := c.HearPurges(testIngress, func(provider string, jobs []StoredPlace) Purge {
		return Purge{Ended: []string{provider, jobs[1].JobID}, Kept: []string{fmt.Sprint(jobs[0].Seq)}}
	})
	require.NoError(t, err)
	flush(t, c)
	done, err := c.AskPurge(t.Context(), testIngress, testProvider, places)
	require.NoError(t, err)
	require.Equal(t, Purge{Ended: []string{testProvider, "b"}, Kept: []string{"1"}}, done)
	ear.Close()
	flush(t, c)
	_, err = c.AskPurge(t.Context(), testIngress, testProvider, places)
	require.ErrorIs(t, err, ErrNoIngress)
}

func TestResetsAreHeardByAllWorkersOfTheProvider(t *testing.T) {
	t.Parallel()
	c := setup(t)
	heard, closed, err := c.ResetBreakers(t.Context(), testProvider, "m", 0)
	require.NoError(t, err)
	require.Zero(t, heard+closed)
	models := make(chan string, 10)
	for n := range 2 {
		ear, err := c.HearResets(testProvider, func(model string) int { models <- model; return n + 1 })
		require.NoError(t, err)
		t.Cleanup(ear.Close)
	}
	other, err := c.HearResets("other", func(string) int { return 100 })
	require.NoError(t, err)
	t.Cleanup(other.Close)
	flush(t, c)
	heard, closed, err = c.ResetBreakers(t.Context(), testProvider, "m", 2)
	require.NoError(t, err)
	require.Equal(t, []int{2, 3}, []int{heard, closed})
	require.Equal(t, "m", receive(t, models))
	began := time.Now()
	heard, _, err = c.ResetBreakers(t.Context(), testProvider, "", 3) // one of them is gone
	require.NoError(t, err)
	require.Equal(t, 2, heard)
	require.Less(t, time.Since(began), 5*time.Second)
}

// bury has a worker bury messages of the provider's interactive lane.
func bury(t *testing.T, c *Conn, headers ...nats.Header) {
	t.Helper()
	p, k := pull(t, c, 1)
	for i, h := range headers {
		rawPublish(t, c, &nats.Msg{Subject: jobSubject(testProvider, inference.LaneInteractive), Header: h, Data: fmt.Appendf(nil, "body %d", i)})
		require.NoError(t, receive(t, k.ch).Bury(t.Context(), testProvider, fmt.Sprintf("Odd reason %d", i)))
		p.Free()
	}
	hasDepth(t, c, Depth{})
}

func TestDeadLettersAreReadNewestFirst(t *testing.T) {
	t.Parallel()
	c := setup(t)
	whole := jobMessage(testJob("whole"), "").Header
	bury(t, c, nats.Header{hdrJob: {"odd"}}, whole, nats.Header{hdrJob: {"third"}})
	all, next, err := c.DeadLetters(t.Context(), DeadFilter{Limit: 10})
	require.NoError(t, err)
	require.Zero(t, next)
	require.Len(t, all, 3)
	require.Equal(t, []uint64{3, 2, 1}, []uint64{all[0].Seq, all[1].Seq, all[2].Seq})
	require.Equal(t, LetterJob, all[2].Kind)
	require.Equal(t, "odd", all[2].JobID)
	require.Error(t, all[2].Unread)
	require.Equal(t, inference.LaneInteractive, all[2].Lane)
	require.NoError(t, all[1].Unread)
	require.Equal(t, "default", all[1].Job.Tenant)
	require.Equal(t, "body 1", string(all[1].Body()))
	require.Equal(t, 6, all[1].Bytes)
	require.Equal(t, 1, all[1].Deliveries)

	page, next, err := c.DeadLetters(t.Context(), DeadFilter{Limit: 2})
	require.NoError(t, err)
	require.Len(t, page, 2)
	page, next, err = c.DeadLetters(t.Context(), DeadFilter{Limit: 2, Before: next})
	require.NoError(t, err)
	require.Zero(t, next)
	require.Len(t, page, 1)
	require.EqualValues(t, 1, page[0].Seq)
	for name, f := range map[string]DeadFilter{
		"reason": {Reason: "ODD reason 1", Limit: 9}, "from": {From: all[1].At, To: all[0].At, Limit: 9}, "provider": {Provider: testProvider, Reason: "1", Limit: 9},
	} {
		got, _, err := c.DeadLetters(t.Context(), f)
		require.NoError(t, err)
		require.Len(t, got, 1, name)
		require.EqualValues(t, 2, got[0].Seq, name)
	}
	none, _, err := c.DeadLetters(t.Context(), DeadFilter{Provider: "other", Limit: 9})
	require.NoError(t, err)
	require.Empty(t, none)
}

func TestADeadLetterIsDroppedOnceAndBecomesOneJob(t *testing.T) {
	t.Parallel()
	c := setup(t)
	bury(t, c, jobMessage(testJob("a"), "").Header, jobMessage(testJob("b"), "").Header)
	counts, err := c.CountLetters(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]int{testProvider: 2}, counts)
	first, err := c.DeadLetter(t.Context(), 1)
	require.NoError(t, err)
	again, err := c.DeadLetter(t.Context(), 1)
	require.NoError(t, err)
	second, err := c.DeadLetter(t.Context(), 2)
	require.NoError(t, err)
	require.True(t, ValidJobID(first.NewJobID()))
	require.Equal(t, first.NewJobID(), again.NewJobID())
	require.NotEqual(t, first.NewJobID(), second.NewJobID())
	require.NotEqual(t, first.JobID, first.NewJobID())
	require.ErrorIs(t, c.Republish(t.Context(), first), ErrNoWayBack, "a job has its own way")

	require.NoError(t, c.DropLetter(t.Context(), 1))
	require.NoError(t, c.DropLetter(t.Context(), 1))
	_, err = c.DeadLetter(t.Context(), 1)
	require.ErrorIs(t, err, ErrNoLetter)
	_, err = c.DeadLetter(t.Context(), 99)
	require.ErrorIs(t, err, ErrNoLetter)
	left, _, err := c.DeadLetters(t.Context(), DeadFilter{Limit: 10})
	require.NoError(t, err)
	require.Len(t, left, 1)
}

func TestUsageGoesBackOnce(t *testing.T) {
	t.Parallel()
	c := setup(t)
	m := nats.NewMsg(deadSubject("usage"))
	m.Data = encodeRecords([]inference.Record{{JobID: "j"}})
	rawPublish(t, c, m)
	l, err := c.DeadLetter(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, LetterUsage, l.Kind)
	require.Nil(t, l.Job)
	require.NoError(t, c.Republish(t.Context(), l))
	require.NoError(t, c.Republish(t.Context(), l))
	info, err := c.streamInfo(t.Context(), usageStream, ">")
	require.NoError(t, err)
	require.EqualValues(t, 1, info.State.Msgs)
}
