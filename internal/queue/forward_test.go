package queue

import (
	"context"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func answerer(t *testing.T, c *Conn) *Answerer {
	t.Helper()
	a, err := c.NewAnswerer("worker01", nil, newEar())
	require.NoError(t, err)
	t.Cleanup(a.Close)
	return a
}

func tried(n int) []inference.Try {
	var list []inference.Try
	for i := range n {
		list = append(list, inference.Try{Provider: "p/ q", Model: "m,ü", Code: inference.CodeUpstreamError, Status: 500 + i%90, Took: time.Duration(i) * time.Millisecond})
	}
	return list
}

func TestForward(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a := answerer(t, c)
	_, err := c.EnsureQueue(t.Context(), "next", 2)
	require.NoError(t, err)
	require.NoError(t, c.EnsureConsumer(t.Context(), "next", 4))
	j := testJob(`{"x":1}`)
	j.Epoch, j.Attempts, j.Tries = 5, 3, tried(2)
	j.Candidates = []inference.Candidate{{Provider: "next", Model: "m/2", On: inference.ReasonTimeout}, {Provider: "last", Model: "", On: 31}}
	seq, err := a.Forward(t.Context(), j, "")
	require.NoError(t, err)
	require.EqualValues(t, 1, seq)
	again, err := a.Forward(t.Context(), j, "")
	require.NoError(t, err)
	require.Equal(t, seq, again, "the same message")

	came := make(chan *Delivery, 10)
	p, err := c.NewPuller("next", inference.LaneInteractive, 4, func(d *Delivery) { came <- d }, nil)
	require.NoError(t, err)
	defer p.Stop()
	got := receive(t, came)
	require.EqualValues(t, 1, got.Seq)
	parsed, ref, err := got.Job()
	require.NoError(t, err)
	require.Empty(t, ref)
	require.Equal(t, j, parsed)

	j.Epoch++
	j.Body = []byte("not this")
	_, err = a.Forward(t.Context(), j, "the.blob")
	require.NoError(t, err)
	parsed, ref, err = receive(t, came).Job()
	require.NoError(t, err)
	require.Equal(t, "the.blob", ref)
	require.Empty(t, parsed.Body)
	require.Equal(t, 6, parsed.Epoch)
}

func TestForwardToAQueueThatDoesNotTakeIt(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a := answerer(t, c)
	_, err := c.EnsureQueue(t.Context(), "small", 1)
	require.NoError(t, err)
	j := testJob("{}")
	j.Candidates[0].Provider = "small"
	_, err = a.Forward(t.Context(), j, "")
	require.NoError(t, err)
	more := testJob("{}")
	more.Candidates[0].Provider = "small"
	_, err = a.Forward(t.Context(), more, "")
	require.ErrorIs(t, err, ErrFull)
	require.NotErrorIs(t, err, ErrNoQueue)
	more.Candidates[0].Provider = "nobody"
	_, err = a.Forward(t.Context(), more, "")
	require.ErrorIs(t, err, ErrNoQueue)
	require.NotErrorIs(t, err, ErrFull)

	over, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = a.Forward(over, more, "")
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, ErrNoQueue, "the server may have it or not")
}

func TestAPassedJobIsTold(t *testing.T) {
	t.Parallel()
	c := setup(t)
	_, e := dispatcher(t, c)
	a := answerer(t, c)
	p := fullPassed()
	p.JobID = NewJobID(testIngress, time.Now())
	require.NoError(t, a.Passed(p))
	require.Equal(t, p, receive(t, e.passed))
}

func TestAClaimCarriesItsPlace(t *testing.T) {
	t.Parallel()
	c := setup(t)
	_, e := dispatcher(t, c)
	a := answerer(t, c)
	want := Claim{JobID: NewJobID(testIngress, time.Now()), Run: Run{3, 4}, Worker: "worker01", Place: fullPassed().Next}
	got, err := a.Claim(t.Context(), want)
	require.NoError(t, err)
	require.Equal(t, Judgement{Verdict: VerdictRun, Attempts: 2}, got)
	require.Equal(t, want, receive(t, e.claims))
}

func TestHeadersOfTriesAndReasons(t *testing.T) {
	t.Parallel()
	for _, cs := range [][]inference.Candidate{
		{{Provider: "a"}},
		{{Provider: "a b/c", Model: "x y/5", On: 3}, {Provider: "ü", Model: "/", On: 255}, {Provider: "p", Model: "5"}},
	} {
		got, err := parseCandidates(encodeCandidates(cs))
		require.NoError(t, err)
		require.Equal(t, cs, got)
	}
	for _, s := range []string{"a/b/", "a/b/x", "a/b/-1", "a/b/256", "a/b/1/2", "a//1/", "/m/1", "a/b/%31"} {
		_, err := parseCandidates(s)
		require.ErrorContains(t, err, hdrCandidates, s)
		require.NotContains(t, err.Error(), "256", "no word of what came")
	}

	none, err := parseTries("")
	require.NoError(t, err)
	require.Nil(t, none)
	got, err := parseTries(encodeTries(tried(3)))
	require.NoError(t, err)
	require.Equal(t, tried(3), got)
	got, err = parseTries(encodeTries(tried(100)))
	require.NoError(t, err)
	require.Equal(t, tried(100)[100-inference.MaxTries:], got, "the last ones")
	whole := encodeTries(tried(2))
	b, err := base64.RawStdEncoding.DecodeString(whole)
	require.NoError(t, err)
	frame := func(b ...byte) string { return base64.RawStdEncoding.EncodeToString(b) }
	for name, s := range map[string]string{
		"not base64":       "%%%",
		"padded":           whole + "==",
		"cut":              frame(b[:len(b)-1]...),
		"more behind it":   frame(append(b, 0)...),
		"another version":  frame(append([]byte{99}, b[1:]...)...),
		"a forged count":   frame(frameVersion, 0xff, 0xff, 0xff, 0x7f),
		"unknown text":     frame(frameVersion, 1, 9, 9, 9, 0, 0),
		"nothing":          frame(0),
		"far too long one": strings.Repeat("A", 1000),
	} {
		_, err := parseTries(s)
		require.ErrorContains(t, err, hdrTries, name)
	}
}

func TestAConsumerKeepsItsBound(t *testing.T) {
	t.Parallel()
	c := setup(t)
	bound := func() int {
		cons, err := c.js.Consumer(t.Context(), jobStream(testProvider), string(inference.LaneInteractive))
		require.NoError(t, err)
		return cons.CachedInfo().Config.MaxAckPending
	}
	require.Equal(t, 64, bound())
	require.NoError(t, c.SetConcurrency(t.Context(), testProvider, 5))
	require.Equal(t, 5, bound())
	require.NoError(t, c.EnsureConsumer(t.Context(), testProvider, 64))
	require.Equal(t, 5, bound(), "SetConcurrency alone changes it")

	require.NoError(t, c.js.DeleteConsumer(t.Context(), jobStream(testProvider), string(inference.LaneInteractive)))
	require.ErrorIs(t, c.SetConcurrency(t.Context(), testProvider, 7), jetstream.ErrConsumerDoesNotExist, "it makes none")
	require.NoError(t, c.EnsureConsumer(t.Context(), testProvider, 9))
	require.Equal(t, 9, bound())
}

// A raised bound is felt by the workers that wait, a lowered one by those to come.
func TestABoundIsFelt(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	require.NoError(t, c.SetConcurrency(t.Context(), testProvider, 1))
	p, k := pull(t, c, 4)
	for range 4 {
		require.NoError(t, publish(t, d, e, testJob("{}")).err)
	}
	first := receive(t, k.ch)
	hasDepth(t, c, Depth{Waiting: 3, Running: 1})
	require.NoError(t, c.SetConcurrency(t.Context(), testProvider, 3))
	second, third := receive(t, k.ch), receive(t, k.ch)
	require.Equal(t, 2, second.Waiting)
	require.Equal(t, 1, third.Waiting)
	hasDepth(t, c, Depth{Waiting: 1, Running: 3})
	require.NoError(t, c.SetConcurrency(t.Context(), testProvider, 1))
	first.Ack()
	p.Free()
	hasDepth(t, c, Depth{Waiting: 1, Running: 2})
	second.Ack()
	third.Ack()
	require.EqualValues(t, 4, receive(t, k.ch).Seq)
}
