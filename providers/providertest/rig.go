package providertest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/providers"
)

// promptly is how soon a call must have ended once its context has.
const promptly = 250 * time.Millisecond

// rig is one adapter with its upstream, which is nil if it has none.
type rig struct {
	providers.Provider
	up      *testkit.Upstream
	dialect Dialect
}

func newRig(t *testing.T, s Subject, o Options) *rig {
	t.Helper()
	r := &rig{dialect: s.Dialect}
	if s.Dialect != nil {
		r.up = testkit.NewUpstream(t)
		r.up.Handle(func(c *testkit.Call) { s.Dialect.Answer(c, "Hello", " there", ".") })
		if o.BaseURL == "" {
			o.BaseURL = r.up.URL()
		}
	}
	r.Provider = s.New(t, o)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

// newSlowRig returns an adapter whose plain answers do not come, and whose streams
// stop after their first token.
func newSlowRig(t *testing.T, s Subject, stream bool, o Options) *rig {
	t.Helper()
	if stream {
		o.TokensPerSecond = 0.01
	} else {
		o.FirstTokenDelay = time.Minute
	}
	r := newRig(t, s, o)
	if r.up != nil {
		r.up.Handle(func(c *testkit.Call) {
			if c.Streamed() {
				s.Dialect.Token(c, "Hello")
			}
			c.Hang()
		})
	}
	return r
}

func newCall(prompt string, stream, usage bool) providers.Call {
	text, _ := json.Marshal(prompt) // a string always encodes
	body := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%s}]`, Model, text)
	if stream {
		body += `,"stream":true`
		if usage {
			body += `,"stream_options":{"include_usage":true}`
		}
	}
	return providers.Call{
		Kind: inference.KindChat, Model: Model, Body: []byte(body + "}"),
		RequestID: "req-1", IncludeUsage: usage,
	}
}

// completion is what the suite reads of answers and chunks.
type completion struct {
	Object  string `json:"object"`
	Model   string `json:"model"`
	Choices []struct {
		Index        int     `json:"index"`
		FinishReason *string `json:"finish_reason"`
		Message      struct {
			Content string `json:"content"`
		} `json:"message"`
		Delta struct {
			Role    string `json:"role"`
			Content string `json:"content"`
		} `json:"delta"`
	} `json:"choices"`
	Usage *struct {
		Prompt     int64 `json:"prompt_tokens"`
		Completion int64 `json:"completion_tokens"`
	} `json:"usage"`
}

func decode(t *testing.T, data []byte) completion {
	t.Helper()
	var c completion
	require.NoError(t, json.Unmarshal(data, &c), "%s", data)
	return c
}

// collector gathers a stream's chunks, copied, as a worker must.
type collector struct {
	chunks  []string
	batches int
}

func (c *collector) emit(chunks [][]byte) error {
	c.batches++
	for _, chunk := range chunks {
		c.chunks = append(c.chunks, string(chunk))
	}
	return nil
}

// text joins the chunks' content and counts those that have any.
func (c *collector) text(t *testing.T) (text string, tokens int) {
	t.Helper()
	for _, chunk := range c.chunks {
		for _, choice := range decode(t, []byte(chunk)).Choices {
			text += choice.Delta.Content
			if choice.Delta.Content != "" {
				tokens++
			}
		}
	}
	return text, tokens
}

// requireError checks an error's class, and that it tells no secret.
func requireError(t *testing.T, r *rig, err error, code inference.ErrorCode) *inference.Error {
	t.Helper()
	require.Error(t, err)
	var e *inference.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, code, e.Code, "%v", err)
	require.NotEmpty(t, e.Message)
	shown := err.Error() + e.Message + string(e.Body)
	require.NotContains(t, shown, APIKey)
	if r.up != nil {
		address, parseErr := url.Parse(r.up.URL())
		require.NoError(t, parseErr)
		require.NotContains(t, shown, address.Host)
		require.NotContains(t, strings.ToLower(shown), "http://")
	}
	return e
}

// within runs a call and fails when it takes longer than promptly after ctx's end.
func requirePrompt(t *testing.T, ctx context.Context, run func() error) error {
	t.Helper()
	result := make(chan error, 1)
	go func() { result <- run() }()
	<-ctx.Done()
	ended := time.Now()
	select {
	case err := <-result:
		require.Less(t, time.Since(ended), promptly)
		return err
	case <-time.After(10 * time.Second):
		require.Fail(t, "the call did not end with its context")
		return nil
	}
}
