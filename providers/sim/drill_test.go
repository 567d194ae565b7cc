package sim_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/sim"
)

func drilled(sim string) providers.Call { return chat(`,"sim":` + sim) }

// streamed collects a streamed call.
type streamed struct {
	chunks  []string
	text    string
	tokens  int
	end     bool // a choice gave its finish reason
	summary providers.Summary
	err     error
}

func stream(t *testing.T, ctx context.Context, p *sim.Provider, call providers.Call) streamed {
	t.Helper()
	var s streamed
	s.summary, s.err = p.StreamGenerate(ctx, call, func(chunks [][]byte) error {
		for _, chunk := range chunks {
			var a answer
			require.NoError(t, json.Unmarshal(chunk, &a))
			s.chunks = append(s.chunks, string(chunk))
			for _, c := range a.Choices {
				s.text += c.Delta.Content
				if c.Delta.Content != "" {
					s.tokens++
				}
				s.end = s.end || c.FinishReason != ""
			}
		}
		return nil
	})
	return s
}

// The call waits a second for its first token and then gets one each 100 ms; it takes
// 10 s at most.
func TestMisbehaviour(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sim        string
		code       inference.ErrorCode
		status     int
		retryable  bool
		retryAfter time.Duration
		tokens     int           // that a streamed answer has before
		took       time.Duration // streamed or not
		cause      error
	}{
		"rate limited":        {`{"status":429,"retry_after":"2s"}`, inference.CodeUpstreamRateLimited, 429, true, 2e9, 0, 1e9, nil},
		"rate limited, plain": {`{"status":429}`, inference.CodeUpstreamRateLimited, 429, true, 0, 0, 1e9, nil},
		"server error":        {`{"status":503,"retry_after":0.5}`, inference.CodeUpstreamError, 503, true, 5e8, 0, 1e9, nil},
		"client's fault":      {`{"status":404}`, inference.CodeUpstreamRejected, 404, false, 0, 0, 1e9, nil},
		"operator's fault":    {`{"status":401}`, inference.CodeUpstreamAuth, 401, false, 0, 0, 1e9, nil},
		"upstream's timeout":  {`{"status":408}`, inference.CodeUpstreamTimeout, 408, true, 0, 0, 1e9, nil},
		"at once":             {`{"status":500,"first_token_delay":0}`, inference.CodeUpstreamError, 500, true, 0, 0, 0, nil},
		"unreachable":         {`{"unreachable":true}`, inference.CodeUpstreamUnavailable, 0, true, 0, 0, 1e9, nil},
		"hang":                {`{"hang":true}`, inference.CodeDeadlineExceeded, 0, false, 0, 0, 1e10, context.DeadlineExceeded},
		"hang in the middle":  {`{"hang":true,"cut_after":3}`, inference.CodeDeadlineExceeded, 0, false, 0, 3, 1e10, context.DeadlineExceeded},
		"slow":                {`{"first_token_delay":"1h"}`, inference.CodeDeadlineExceeded, 0, false, 0, 0, 1e10, context.DeadlineExceeded},
		"slow tokens":         {`{"tokens_per_second":0.5}`, inference.CodeDeadlineExceeded, 0, false, 0, 5, 1e10, context.DeadlineExceeded},
		"slower than numbers": {`{"tokens_per_second":1e-300}`, inference.CodeDeadlineExceeded, 0, false, 0, 1, 1e10, context.DeadlineExceeded},
		"malformed":           {`{"malformed":true}`, inference.CodeUpstreamInvalid, 200, false, 0, 0, 1e9, nil},
		"malformed later":     {`{"malformed":true,"cut_after":3}`, inference.CodeUpstreamInvalid, 200, false, 0, 3, 12e8, nil},
		"cut":                 {`{"cut_after":3}`, inference.CodeUpstreamCut, 0, true, 0, 3, 12e8, io.ErrUnexpectedEOF},
		"cut at once":         {`{"cut_after":0}`, inference.CodeUpstreamCut, 0, true, 0, 0, 1e9, io.ErrUnexpectedEOF},
		"cut before its end":  {`{"cut_after":900}`, inference.CodeUpstreamCut, 0, true, 0, 20, 29e8, io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newSim(t, sim.Options{FirstTokenDelay: time.Second, TokensPerSecond: 10, CompletionTokens: 20})
				check := func(err error, took time.Duration) {
					e := inference.AsError(err)
					require.Equal(t, c.code, e.Code)
					require.Equal(t, c.status, e.Status)
					require.Equal(t, c.retryable, e.Retryable)
					require.Equal(t, c.retryAfter, e.RetryAfter)
					require.Equal(t, c.took, took)
					require.Equal(t, c.code == inference.CodeUpstreamRejected, json.Valid(e.Body))
					if c.cause != nil {
						require.ErrorIs(t, err, c.cause)
					}
				}
				begun := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				resp, err := p.Generate(ctx, drilled(c.sim))
				cancel()
				require.Nil(t, resp)
				check(err, time.Since(begun))

				begun = time.Now()
				ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
				s := stream(t, ctx, p, drilled(c.sim))
				cancel()
				check(s.err, time.Since(begun))
				require.Equal(t, c.tokens, s.tokens)
				require.False(t, s.end)
				if c.tokens == 0 {
					require.Empty(t, s.chunks, "a call that fails before its first token can be made again elsewhere")
				}
				require.EqualValues(t, c.tokens, s.summary.Usage.CompletionTokens)
			})
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	p := newSim(t, sim.Options{FailureRate: 1, CompletionTokens: 3})
	for kind, c := range map[string]struct {
		want inference.Refusal
		code string
	}{
		"context_too_long": {inference.RefusalContext, `"code":"context_length_exceeded"`},
		"content_refused":  {inference.RefusalContent, `"code":"content_policy_violation"`},
	} {
		call := drilled(`{"refusal":"` + kind + `"}`)
		_, plain := p.Generate(t.Context(), call)
		s := stream(t, t.Context(), p, call)
		require.Empty(t, s.chunks)
		call.Kind, call.Body = inference.KindEmbeddings, []byte(`{"model":"sim","input":"a","sim":{"refusal":"`+kind+`"}}`)
		_, embedded := p.Generate(t.Context(), call)
		for _, err := range []error{plain, s.err, embedded} {
			e := inference.AsError(err)
			require.Equal(t, inference.CodeUpstreamRejected, e.Code)
			require.Equal(t, 400, e.Status)
			require.Equal(t, c.want, e.Refusal)
			require.Contains(t, string(e.Body), c.code)
		}
	}
}

func TestAnAnswerThatIsHeldBack(t *testing.T) {
	t.Parallel()
	p := newSim(t, sim.Options{FailureRate: 1, CompletionTokens: 3})
	call := drilled(`{"refusal":"content_filter"}`)
	a, usage := generate(t, p, call)
	require.Equal(t, "content_filter", a.Choices[0].FinishReason)
	require.Zero(t, usage.CompletionTokens)
	s := stream(t, t.Context(), p, call)
	require.NoError(t, s.err)
	require.Empty(t, s.text)
	require.Contains(t, s.chunks[len(s.chunks)-1], `"finish_reason":"content_filter"`)

	_, err := p.Generate(t.Context(), providers.Call{
		Kind: inference.KindEmbeddings, Body: []byte(`{"model":"sim","input":"a","sim":{"refusal":"content_filter"}}`),
	})
	require.Equal(t, "sim.refusal", inference.AsError(err).Param, "there is nothing to hold back")

	call.RefusalIsError = true
	_, plain := p.Generate(t.Context(), call)
	s = stream(t, t.Context(), p, call)
	require.Empty(t, s.chunks)
	for _, err := range []error{plain, s.err} {
		require.Equal(t, inference.RefusalContent, inference.AsError(err).Refusal)
	}
	once := drilled(`{"refusal":"content_filter","times":1}`)
	once.RequestID, once.RefusalIsError = rand.Text(), true
	patient := newSim(t, sim.Options{})
	require.Error(t, stream(t, t.Context(), patient, once).err)
	require.NoError(t, stream(t, t.Context(), patient, once).err)
}

func TestUsageOfABrokenStreamIsEstimated(t *testing.T) {
	t.Parallel()
	p := newSim(t, sim.Options{CompletionTokens: 20})
	for _, fields := range []string{`{"cut_after":3}`, `{"cut_after":3,"malformed":true}`} {
		call := chat(`,"n":2,"sim":` + fields)
		call.IncludeUsage = true
		s := stream(t, t.Context(), p, call)
		require.Error(t, s.err)
		require.Equal(t, providers.Summary{Model: "sim", Usage: inference.Usage{
			PromptTokens: openaiapi.EstimatePromptTokens(call.Body), CompletionTokens: 6, Known: true, Estimated: true,
		}}, s.summary)
		require.NotContains(t, strings.Join(s.chunks, ""), `"usage"`)
	}
	s := stream(t, t.Context(), p, drilled(`{"cut_after":0}`))
	require.Error(t, s.err)
	require.Zero(t, s.summary, "nothing came, so nothing is known")
}

func TestCutAnswerIsTheBeginningOfTheWhole(t *testing.T) {
	t.Parallel()
	p := newSim(t, sim.Options{CompletionTokens: 20})
	whole := stream(t, t.Context(), p, chat(""))
	require.NoError(t, whole.err)
	cut := stream(t, t.Context(), p, drilled(`{"cut_after":5}`))
	require.Error(t, cut.err)
	require.Equal(t, strings.Join(strings.Fields(whole.text)[:5], " "), cut.text)
}

func TestOverrides(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newSim(t, sim.Options{FirstTokenDelay: time.Second, TokensPerSecond: 10, CompletionTokens: 5})
		for fields, want := range map[string]struct {
			tokens int64
			took   time.Duration
		}{
			`{}`:                           {5, 1400e6},
			`null`:                         {5, 1400e6},
			`{"first_token_delay":"30ms"}`: {5, 430e6},
			`{"first_token_delay":2.5}`:    {5, 2900e6},
			`{"tokens_per_second":2}`:      {5, 3000e6},
			`{"tokens_per_second":0}`:      {5, 1000e6},
			`{"completion_tokens":11}`:     {11, 2000e6},
			`{"first_token_delay":0,"tokens_per_second":0,"completion_tokens":10000}`: {10000, 0},
		} {
			begun := time.Now()
			_, usage := generate(t, p, drilled(fields))
			require.Equal(t, want.tokens, usage.CompletionTokens, fields)
			require.Equal(t, want.took, time.Since(begun), fields)
			begun = time.Now()
			s := stream(t, t.Context(), p, drilled(fields))
			require.NoError(t, s.err)
			require.Equal(t, usage, s.summary.Usage)
			require.EqualValues(t, want.tokens, s.tokens)
			require.Equal(t, want.took, time.Since(begun), fields)
		}
		a, usage := generate(t, p, chat(`,"max_tokens":3,"sim":{"completion_tokens":9}`))
		require.EqualValues(t, 3, usage.CompletionTokens)
		require.Equal(t, "length", a.Choices[0].FinishReason)
	})
}

func TestTimesCountTheCallsOfARequest(t *testing.T) {
	t.Parallel()
	first, second := newSim(t, sim.Options{Name: "first"}), newSim(t, sim.Options{Name: "second"})
	call := drilled(`{"status":503,"times":3}`)
	fails := func(p *sim.Provider) bool {
		_, err := p.Generate(t.Context(), call)
		if err == nil {
			return false
		}
		require.Equal(t, inference.CodeUpstreamError, inference.AsError(err).Code)
		return true
	}
	id := rand.Text() // the process remembers those of earlier runs
	call.RequestID = id
	require.True(t, fails(first))
	require.True(t, fails(first))
	require.True(t, fails(second), "a failover is the next call of the same request")
	require.False(t, fails(second))
	require.False(t, fails(first))
	require.NoError(t, stream(t, t.Context(), first, call).err)

	call.RequestID = id + "-other"
	require.True(t, fails(first))
	call.RequestID = ""
	for range 5 {
		require.True(t, fails(first))
	}
	call = drilled(`{"status":200,"times":1}`)
	call.RequestID = id + "-refused"
	for range 2 {
		_, err := first.Generate(t.Context(), call)
		require.Equal(t, "sim.status", inference.AsError(err).Param, "a wrong request stays wrong")
	}
}

func TestRefusedFieldNamesItself(t *testing.T) {
	t.Parallel()
	p := newSim(t, sim.Options{FirstTokenDelay: time.Hour})
	call := drilled(`{"status":"bad"}`)
	_, plain := p.Generate(t.Context(), call)
	embeddings := providers.Call{Kind: inference.KindEmbeddings, Body: []byte(`{"model":"m","input":"x","sim":{"status":"bad"}}`)}
	_, embedded := p.Generate(t.Context(), embeddings)
	for _, err := range []error{plain, embedded, stream(t, t.Context(), p, call).err} {
		e := inference.AsError(err)
		require.Equal(t, inference.CodeInvalidRequest, e.Code)
		require.Equal(t, "sim.status", e.Param)
		require.Equal(t, "sim.status must be an integer from 400 to 599", e.Message)
		require.NotContains(t, err.Error(), "bad")
	}
}

func TestConfiguredFailuresLeaveDrillsAlone(t *testing.T) {
	t.Parallel()
	p := newSim(t, sim.Options{FailureRate: 1})
	require.Equal(t, inference.CodeUpstreamCut, inference.AsError(stream(t, t.Context(), p, drilled(`{"cut_after":2}`)).err).Code)
	require.Equal(t, inference.CodeUpstreamError, inference.AsError(stream(t, t.Context(), p, drilled(`{"completion_tokens":2}`)).err).Code)
}

func TestHangEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newSim(t, sim.Options{})
		for _, fields := range []string{`{"hang":true}`, `{"hang":true,"cut_after":2}`} {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() {
				_, err := p.StreamGenerate(ctx, drilled(fields), func([][]byte) error { return nil })
				done <- err
			}()
			synctest.Wait()
			select {
			case err := <-done:
				require.Fail(t, "it answers", "%v", err)
			default:
			}
			cancel()
			err := <-done
			require.ErrorIs(t, err, context.Canceled)
			require.Equal(t, inference.CodeCancelled, inference.AsError(err).Code)
		}
	})
}

func TestEmitErrorBeforeAFault(t *testing.T) {
	t.Parallel()
	full := errors.New("receiver is full")
	_, err := newSim(t, sim.Options{}).StreamGenerate(t.Context(), drilled(`{"cut_after":1}`), func([][]byte) error { return full })
	require.ErrorIs(t, err, full)
}

func TestMisbehaviourRepeats(t *testing.T) {
	t.Parallel()
	run := func() string {
		p := newSim(t, sim.Options{})
		all := ""
		for _, fields := range []string{`{"cut_after":2}`, `{"status":500}`, `{}`} {
			s := stream(t, t.Context(), p, drilled(fields))
			all += fmt.Sprint(s.text, s.summary, s.err)
		}
		return all
	}
	first := run()
	require.Equal(t, first, run())
}
