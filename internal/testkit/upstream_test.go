package testkit

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/require"
)

func post(t *testing.T, ctx context.Context, up *Upstream, body string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, up.URL()+"/chat/completions?x=1", strings.NewReader(body))
	require.NoError(t, err)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err == nil {
		t.Cleanup(func() { _ = resp.Body.Close() })
	}
	return resp, err
}

// TestUpstreamSpeaksOpenAI has the official client judge what the upstream says.
func TestUpstreamSpeaksOpenAI(t *testing.T) {
	t.Parallel()
	up := NewUpstream(t)
	client := openai.NewClient(option.WithBaseURL(up.URL()), option.WithAPIKey("k"), option.WithMaxRetries(0))
	params := openai.ChatCompletionNewParams{
		Model:    "m",
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("hi")},
	}
	answer, err := client.Chat.Completions.New(t.Context(), params)
	require.NoError(t, err)
	require.Equal(t, "Hello there.", answer.Choices[0].Message.Content)
	require.EqualValues(t, 3, answer.Usage.CompletionTokens)

	params.StreamOptions.IncludeUsage = openai.Bool(true)
	stream := client.Chat.Completions.NewStreaming(t.Context(), params)
	sum := openai.ChatCompletionAccumulator{}
	for stream.Next() {
		require.True(t, sum.AddChunk(stream.Current()))
	}
	require.NoError(t, stream.Err())
	require.Equal(t, "Hello there.", sum.Choices[0].Message.Content)
	require.EqualValues(t, 7, sum.Usage.PromptTokens)

	up.Handle(func(c *Call) { c.Fail(http.StatusTeapot, "short and stout") })
	_, err = client.Chat.Completions.New(t.Context(), params)
	var apiError *openai.Error
	require.ErrorAs(t, err, &apiError)
	require.Equal(t, "short and stout", apiError.Message)

	up.SetModels("a", "b")
	models, err := client.Models.List(t.Context())
	require.NoError(t, err)
	require.Len(t, models.Data, 2)
}

func TestUpstreamRecords(t *testing.T) {
	t.Parallel()
	up := NewUpstream(t)
	require.Zero(t, up.Last())
	const body = "{ \"odd\": 1.50 }"
	_, err := post(t, t.Context(), up, body)
	require.NoError(t, err)
	up.AwaitCount(1)
	got := up.Requests()[0]
	require.Equal(t, body, string(got.Body))
	require.Equal(t, "/v1/chat/completions", got.Path)
	require.Equal(t, "x=1", got.Query)
	require.WithinDuration(t, time.Now(), got.Arrived, time.Minute)
	up.AwaitIdle()
	require.Equal(t, 1, up.MostInFlight())
}

func TestUpstreamSeesWhatIsAskedFor(t *testing.T) {
	t.Parallel()
	up := NewUpstream(t)
	for _, c := range []struct {
		body, accept string
		streamed     bool
	}{{`{}`, "", false}, {`{}`, "application/json", false}, {`{"stream":true}`, "application/json", true}, {`{}`, "text/event-stream", true}} {
		streamed := make(chan bool, 1)
		up.Handle(func(call *Call) { streamed <- call.Streamed() })
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, up.URL(), strings.NewReader(c.body))
		require.NoError(t, err)
		req.Header.Set("Accept", c.accept)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, c.streamed, <-streamed, "%+v", c)
	}
}

func TestUpstreamGatesChunks(t *testing.T) {
	t.Parallel()
	up := NewUpstream(t)
	gate := make(chan struct{})
	up.Handle(func(c *Call) {
		c.Delta("one")
		if c.Wait(gate) {
			c.Comment("two")
		}
	})
	resp, err := post(t, t.Context(), up, `{"stream":true}`)
	require.NoError(t, err)
	lines := bufio.NewReader(resp.Body)
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "one")
	require.Equal(t, 1, up.InFlight(), "the second chunk waits")
	gate <- struct{}{}
	rest, err := io.ReadAll(lines)
	require.NoError(t, err)
	require.Equal(t, "\n: two\n\n", string(rest))
}

func TestUpstreamCutsTheConnection(t *testing.T) {
	t.Parallel()
	up := NewUpstream(t)
	up.Handle(func(c *Call) { c.Delta("one"); c.Cut() })
	resp, err := post(t, t.Context(), up, `{}`)
	require.NoError(t, err)
	_, err = io.ReadAll(resp.Body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

func TestUpstreamSeesDisconnects(t *testing.T) {
	t.Parallel()
	up := NewUpstream(t)
	up.Handle((*Call).Hang)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		up.AwaitCount(1)
		cancel()
	}()
	_, err := post(t, ctx, up, `{}`)
	require.ErrorIs(t, err, context.Canceled)
	left := time.Now()
	require.WithinDuration(t, left, up.AwaitDisconnects(1)[0], 250*time.Millisecond)
	up.AwaitIdle()
}

func TestUpstreamPauseEndsWithTheClient(t *testing.T) {
	t.Parallel()
	up := NewUpstream(t)
	results := make(chan bool, 2)
	up.Handle(func(c *Call) {
		c.Delta("one")
		results <- c.Pause(time.Millisecond)
		results <- c.Pause(time.Hour)
	})
	resp, err := post(t, t.Context(), up, `{}`)
	require.NoError(t, err)
	require.True(t, <-results)
	require.NoError(t, resp.Body.Close())
	require.False(t, <-results)
}

func TestAnUpstreamDiesAndComesBack(t *testing.T) {
	t.Parallel()
	u := NewUpstream(t)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func() error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, u.URL()+"/chat/completions", strings.NewReader(`{}`))
		require.NoError(t, err)
		resp, err := client.Do(req)
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	}
	require.NoError(t, ask())
	u.Handle(func(c *Call) { <-c.Disconnected() })
	cut := make(chan error, 1)
	go func() { cut <- ask() }()
	u.AwaitCount(2)
	u.Die()
	require.Error(t, <-cut, "the call in progress is cut")
	require.ErrorContains(t, ask(), "refused")
	u.Handle(func(c *Call) { c.Reply("back") })
	u.Revive()
	require.NoError(t, ask())
	require.Equal(t, 3, u.Count())
}
