package e2e_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

// dripped is a streamed answer that a test lets flow word by word.
type dripped struct {
	words chan string // closed at the end of the answer
}

func drip(u *testkit.Upstream) *dripped {
	d := &dripped{words: make(chan string, 1000)}
	u.Handle(func(call *testkit.Call) {
		call.Stream()
		for {
			select {
			case w, more := <-d.words:
				if !more {
					call.Finish("stop")
					call.Usage(7, 3)
					call.Done()
					return
				}
				call.Delta(w)
			case <-call.Disconnected():
				return
			}
		}
	})
	return d
}

// say sends the words from one number up to another and returns them joined.
func (d *dripped) say(from, to int) (text string) {
	for i := from; i < to; i++ {
		w := fmt.Sprintf("w%d ", i)
		d.words <- w
		text += w
	}
	return text
}

func TestStreamOfAKilledIngressGoesOnElsewhere(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	doomed, other := c.ingress(), c.ingress()
	c.worker(doomed, 1)
	answer := drip(c.upstream)

	s := doomed.openStream(t, clusterModel, "go on", http.Header{"X-Request-Id": {"go-on"}})
	whole := answer.say(0, 30)
	got := s.until("w29 ")
	whole += answer.say(30, 60) // some of it reaches the client, some does not
	doomed.kill()
	got = append(got, s.rest()...)
	require.NotEqual(t, "[DONE]", got[len(got)-1].data)

	whole += answer.say(60, 90) // said while no client listens
	first := other.resume(t, s.job(), got[len(got)-1].id)
	got = append(got, first.until("w89 ")...)
	whole += answer.say(90, 120) // said live, to the other ingress
	got = append(got, first.until("w119 ")...)
	require.NoError(t, first.resp.Body.Close()) // the connection drops once more

	second := other.resume(t, s.job(), got[len(got)-1].id)
	whole += answer.say(120, 150)
	close(answer.words)
	got = append(got, second.rest()...)

	require.Equal(t, whole, texts(got), "no gap and no repeat")
	require.True(t, got[len(got)-1].done())
	require.Equal(t, 1, c.upstream.Count(), "the provider is called once")
	ids := make(map[string]bool)
	for _, e := range got {
		require.NotEmpty(t, e.id, "each frame has an id")
		require.False(t, ids[e.id], "id %s comes twice", e.id)
		ids[e.id] = true
	}

	// From the beginning, and behind the end.
	again := other.resume(t, s.job(), "").rest()
	require.Equal(t, whole, texts(again))
	require.True(t, again[len(again)-1].done())
	require.Equal(t, http.StatusNoContent, drop(other.resumeRaw(t, s.job(), got[len(got)-1].id)))

	row := c.requireOneRowEach([]string{"go-on"})["go-on"]
	require.Equal(t, inference.OutcomeAbandoned, row.Outcome, "the worker accounts for it in the ingress's place")
	require.Equal(t, int64(3), row.Usage.CompletionTokens)
}

func TestClientMayComeBackWithinItsWindow(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	a, b := c.ingress(), c.ingress()
	c.worker(a, 1)
	answer := drip(c.upstream)
	s := a.openStream(t, clusterModel, "brb", http.Header{"X-Sluice-Resume-Window": {"30s"}, "X-Request-Id": {"brb"}})
	whole := answer.say(0, 5)
	got := s.until("w4 ")
	require.NoError(t, s.resp.Body.Close())
	whole += answer.say(5, 10)
	resumed := b.resume(t, s.job(), got[len(got)-1].id)
	got = append(got, resumed.until("w9 ")...)
	whole += answer.say(10, 15)
	close(answer.words)
	got = append(got, resumed.rest()...)
	require.Equal(t, whole, texts(got))
	require.True(t, got[len(got)-1].done())
	row := c.requireOneRowEach([]string{"brb"})["brb"]
	require.Equal(t, inference.OutcomeSucceeded, row.Outcome)

	// Another tenant's client learns nothing of the stream, nor does a stranger.
	code, key, stderr := execute(t, command{args: []string{"keys", "create", "stranger", "--tenant", "other", "--config", c.file("ingress.yaml")}})
	require.Zero(t, code, stderr)
	require.Equal(t, http.StatusNotFound, drop(b.as(key).resumeRaw(t, s.job(), "")))
	require.Equal(t, http.StatusUnauthorized, drop(b.as("sk-unknown").resumeRaw(t, s.job(), "")))
}
