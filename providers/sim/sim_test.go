package sim_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/providers"
	"sluice/providers/sim"
)

type answer struct {
	ID      string `json:"id"`
	Choices []struct {
		Index        int    `json:"index"`
		FinishReason string `json:"finish_reason"`
		Message      struct {
			Content string `json:"content"`
		} `json:"message"`
		Delta struct {
			Role    string `json:"role"`
			Content string `json:"content"`
		} `json:"delta"`
	} `json:"choices"`
	Usage map[string]int64 `json:"usage"`
}

func newSim(t *testing.T, o sim.Options) *sim.Provider {
	t.Helper()
	p, err := sim.New(o)
	require.NoError(t, err)
	return p
}

func chat(fields string) providers.Call {
	body := `{"model":"sim","messages":[{"role":"system","content":"be brief"},{"role":"user","content":[{"type":"text","text":"how are you"},{"type":"image_url","image_url":{"url":"data:"}}]}]` + fields + `}`
	return providers.Call{Kind: inference.KindChat, Body: []byte(body)}
}

func generate(t *testing.T, p *sim.Provider, call providers.Call) (answer, inference.Usage) {
	t.Helper()
	resp, err := p.Generate(t.Context(), call)
	require.NoError(t, err)
	var a answer
	require.NoError(t, json.Unmarshal(resp.Body, &a), "%s", resp.Body)
	require.Equal(t, map[string]int64{
		"prompt_tokens": resp.Usage.PromptTokens, "completion_tokens": resp.Usage.CompletionTokens,
		"total_tokens": resp.Usage.PromptTokens + resp.Usage.CompletionTokens,
	}, a.Usage)
	return a, resp.Usage
}

func TestUsageIsHonest(t *testing.T) {
	t.Parallel()
	p := newSim(t, sim.Options{})
	a, usage := generate(t, p, chat(""))
	// Two roles, "be brief", "how are you" and one image.
	require.Equal(t, inference.Usage{PromptTokens: 8, CompletionTokens: sim.DefaultCompletionTokens, Known: true}, usage)
	require.Len(t, strings.Fields(a.Choices[0].Message.Content), sim.DefaultCompletionTokens)
	require.Equal(t, "stop", a.Choices[0].FinishReason)
	require.True(t, strings.HasPrefix(a.ID, "chatcmpl-"))
}

func TestLimits(t *testing.T) {
	t.Parallel()
	p := newSim(t, sim.Options{CompletionTokens: 10})
	full, _ := generate(t, p, chat(""))
	text := full.Choices[0].Message.Content
	words := strings.Fields(text)
	cases := map[string]struct {
		fields, text, finish string
		tokens               int64
	}{
		"max_tokens":            {`,"max_tokens":3`, strings.Join(words[:3], " "), "length", 3},
		"max_completion_tokens": {`,"max_completion_tokens":4`, strings.Join(words[:4], " "), "length", 4},
		"the smaller":           {`,"max_tokens":5,"max_completion_tokens":4`, strings.Join(words[:4], " "), "length", 4},
		"beyond":                {`,"max_tokens":100`, text, "stop", 10},
		"exactly":               {`,"max_tokens":10`, text, "stop", 10},
		"none":                  {`,"max_tokens":0`, "", "length", 0},
		"null":                  {`,"max_tokens":null,"n":null,"stop":null`, text, "stop", 10},
		"stop at a space":       {fmt.Sprintf(`,"stop":" %s"`, words[1]), words[0], "stop", 1},
		"stop in a list":        {fmt.Sprintf(`,"stop":["nowhere","%s"]`, words[0]), "", "stop", 0},
		"stop nowhere":          {`,"stop":["nowhere",""]`, text, "stop", 10},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, usage := generate(t, p, chat(c.fields))
			require.Equal(t, c.text, a.Choices[0].Message.Content)
			require.Equal(t, c.finish, a.Choices[0].FinishReason)
			require.Equal(t, c.tokens, usage.CompletionTokens)
		})
	}
}

func TestSeveralChoices(t *testing.T) {
	t.Parallel()
	p := newSim(t, sim.Options{CompletionTokens: 5})
	call := chat(`,"n":3,"stream":true`)
	call.IncludeUsage = true
	texts, finished, tokens := map[int]string{}, 0, 0
	sum, err := p.StreamGenerate(t.Context(), call, func(chunks [][]byte) error {
		for _, chunk := range chunks {
			var a answer
			require.NoError(t, json.Unmarshal(chunk, &a))
			for _, c := range a.Choices {
				texts[c.Index] += c.Delta.Content
				if c.Delta.Content != "" {
					tokens++
				}
				if c.FinishReason != "" {
					finished++
				}
			}
		}
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, 3, finished)
	require.Len(t, texts, 3)
	require.NotEqual(t, texts[0], texts[1])
	require.Equal(t, 15, tokens)
	require.EqualValues(t, 15, sum.Usage.CompletionTokens)
	plain, usage := generate(t, p, call)
	require.Equal(t, sum.Usage, usage)
	for i, c := range plain.Choices {
		require.Equal(t, texts[i], c.Message.Content)
	}
}

func TestModelOfTheCallCounts(t *testing.T) {
	t.Parallel()
	call := chat("")
	call.Model = "other \"one\""
	resp, err := newSim(t, sim.Options{}).Generate(t.Context(), call)
	require.NoError(t, err)
	require.Equal(t, call.Model, resp.Model)
	require.Contains(t, string(resp.Body), `"model":"other \"one\""`)
}

func TestPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newSim(t, sim.Options{FirstTokenDelay: time.Second, TokensPerSecond: 10, CompletionTokens: 5})
		start := time.Now()
		var at []time.Duration
		_, err := p.StreamGenerate(t.Context(), chat(""), func([][]byte) error {
			at = append(at, time.Since(start))
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, []time.Duration{1000e6, 1100e6, 1200e6, 1300e6, 1400e6}, at)

		start = time.Now()
		_, err = p.Generate(t.Context(), chat(""))
		require.NoError(t, err)
		require.Equal(t, 1400*time.Millisecond, time.Since(start), "a plain answer takes as long")
	})
}

func TestFailuresRepeat(t *testing.T) {
	t.Parallel()
	run := func(seed uint64) string {
		p := newSim(t, sim.Options{FailureRate: 0.3, Seed: seed})
		pattern := ""
		for range 500 {
			_, err := p.Generate(t.Context(), chat(""))
			if err == nil {
				pattern += "."
				continue
			}
			e := inference.AsError(err)
			require.Equal(t, inference.CodeUpstreamError, e.Code)
			require.True(t, e.Retryable)
			require.Equal(t, 500, e.Status)
			pattern += "x"
		}
		return pattern
	}
	first := run(1)
	require.Equal(t, first, run(1))
	require.NotEqual(t, first, run(2))
	require.InDelta(t, 150, strings.Count(first, "x"), 50)

	for rate, failures := range map[float64]int{0: 0, 1: 50} {
		p, failed := newSim(t, sim.Options{FailureRate: rate}), 0
		for range 50 {
			if _, err := p.Generate(t.Context(), chat("")); err != nil {
				failed++
			}
		}
		require.Equal(t, failures, failed)
	}
}

func TestBadRequestsAreRejected(t *testing.T) {
	t.Parallel()
	p := newSim(t, sim.Options{})
	for _, body := range []string{"x", `[]`, `{"messages":7}`, `{"messages":[],"n":1000}`, `{"messages":[],"n":0}`} {
		_, err := p.Generate(t.Context(), providers.Call{Kind: inference.KindChat, Body: []byte(body)})
		e := inference.AsError(err)
		require.Equal(t, inference.CodeUpstreamRejected, e.Code, body)
		require.Equal(t, 400, e.Status)
		require.True(t, json.Valid(e.Body))
	}
}

func TestPartialUsage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newSim(t, sim.Options{TokensPerSecond: 1, CompletionTokens: 10})
		ctx, cancel := context.WithTimeout(t.Context(), 3500*time.Millisecond)
		defer cancel()
		sum, err := p.StreamGenerate(ctx, chat(""), func([][]byte) error { return nil })
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualValues(t, 4, sum.Usage.CompletionTokens)
	})
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, o := range []sim.Options{
		{FirstTokenDelay: -1},
		{TokensPerSecond: -1},
		{FailureRate: 1.1},
		{FailureRate: -0.1},
		{CompletionTokens: -1},
		{CompletionTokens: sim.MaxCompletionTokens + 1},
		{Models: []string{"[x"}},
	} {
		_, err := sim.New(o)
		require.Error(t, err, "%+v", o)
	}
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	caps, err := newSim(t, sim.Options{}).Capabilities(t.Context())
	require.NoError(t, err)
	require.Equal(t, providers.Capabilities{
		Traits: inference.Traits{Chat: true, Streaming: true, Images: true, Embeddings: true}, Models: []string{"sim"},
	}, caps)
}
