package providertest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

func testPlain(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	call := newCall("hello", false, false)
	before := string(call.Body)
	resp, err := r.Generate(t.Context(), call)
	require.NoError(t, err)
	require.Equal(t, before, string(call.Body), "the call's bytes must stay")

	got := decode(t, resp.Body)
	require.Equal(t, "chat.completion", got.Object)
	require.Len(t, got.Choices, 1)
	require.NotEmpty(t, got.Choices[0].Message.Content)
	require.NotNil(t, got.Choices[0].FinishReason)
	require.Equal(t, Model, resp.Model)
	require.NotNil(t, got.Usage)
	require.Equal(t, inference.Usage{PromptTokens: got.Usage.Prompt, CompletionTokens: got.Usage.Completion, Known: true}, resp.Usage)
	require.Positive(t, resp.Usage.CompletionTokens)
	if r.up != nil {
		require.Equal(t, "Hello there.", got.Choices[0].Message.Content)
		require.Equal(t, inference.Usage{PromptTokens: PromptTokens, CompletionTokens: 3, Known: true}, resp.Usage)
	}
}

func testStream(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	call := newCall("hello", true, false)
	before := string(call.Body)
	var c collector
	sum, err := r.StreamGenerate(t.Context(), call, c.emit)
	require.NoError(t, err)
	require.Equal(t, before, string(call.Body), "the call's bytes must stay")

	text, tokens := c.text(t)
	require.NotEmpty(t, text)
	require.Equal(t, Model, sum.Model)
	require.True(t, sum.Usage.Known)
	require.False(t, sum.Usage.Estimated, "the upstream reported it")
	require.EqualValues(t, tokens, sum.Usage.CompletionTokens)
	if r.up != nil {
		require.Equal(t, "Hello there.", text)
		require.EqualValues(t, PromptTokens, sum.Usage.PromptTokens)
	}
	for _, chunk := range c.chunks {
		require.Equal(t, "chat.completion.chunk", decode(t, []byte(chunk)).Object)
		require.NotContains(t, chunk, `"usage"`, "nobody asked for it")
	}
	require.Equal(t, "assistant", decode(t, []byte(c.chunks[0])).Choices[0].Delta.Role)
	last := decode(t, []byte(c.chunks[len(c.chunks)-1]))
	require.Len(t, last.Choices, 1)
	require.NotNil(t, last.Choices[0].FinishReason)

	plain, err := r.Generate(t.Context(), newCall("hello", false, false))
	require.NoError(t, err)
	require.Equal(t, decode(t, plain.Body).Choices[0].Message.Content, text, "streamed or not, it is the same answer")
}

func testUsageChunk(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	var c collector
	sum, err := r.StreamGenerate(t.Context(), newCall("hello", true, true), c.emit)
	require.NoError(t, err)
	last := decode(t, []byte(c.chunks[len(c.chunks)-1]))
	require.Empty(t, last.Choices)
	require.NotNil(t, last.Usage)
	require.Equal(t, last.Usage.Prompt, sum.Usage.PromptTokens)
	require.Equal(t, last.Usage.Completion, sum.Usage.CompletionTokens)
	for _, chunk := range c.chunks[:len(c.chunks)-1] {
		require.Nil(t, decode(t, []byte(chunk)).Usage, "usage is reported once")
	}
}

func testOrder(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	want := ""
	if r.up != nil {
		var tokens []string
		for i := range 2000 {
			tokens = append(tokens, fmt.Sprintf(" %d%s", i, strings.Repeat("x", i%50)))
		}
		tokens = append(tokens, strings.Repeat("long", 5000), "end")
		want = strings.Join(tokens, "")
		r.up.Handle(func(c *testkit.Call) { r.dialect.Answer(c, tokens...) })
	}
	for range 2 {
		var c collector
		_, err := r.StreamGenerate(t.Context(), newCall("hello", true, false), c.emit)
		require.NoError(t, err)
		text, _ := c.text(t)
		if want == "" {
			want = text
		}
		require.Equal(t, want, text)
	}
}

func testCancelPlain(t *testing.T, s Subject) {
	r := newSlowRig(t, s, false, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	err := requirePrompt(t, ctx, func() error {
		_, err := r.Generate(ctx, newCall("hello", false, false))
		return err
	})
	require.ErrorIs(t, err, context.Canceled)
	requireError(t, r, err, inference.CodeCancelled)
}

func testCancelStream(t *testing.T, s Subject) {
	r := newSlowRig(t, s, true, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	var c collector
	err := requirePrompt(t, ctx, func() error {
		sum, err := r.StreamGenerate(ctx, newCall("hello", true, false), func(chunks [][]byte) error {
			_ = c.emit(chunks) // collecting never fails
			cancel()
			return nil
		})
		require.True(t, sum.Usage.Known, "what was generated must be accounted for")
		require.EqualValues(t, 1, sum.Usage.CompletionTokens)
		require.Equal(t, Model, sum.Model)
		return err
	})
	require.ErrorIs(t, err, context.Canceled)
	requireError(t, r, err, inference.CodeCancelled)
	require.Equal(t, 1, c.batches)
}

func testEndedContext(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := r.Generate(ctx, newCall("hello", false, false))
	require.ErrorIs(t, err, context.Canceled)
	_, err = r.StreamGenerate(ctx, newCall("hello", true, false), func([][]byte) error {
		return errors.New("nothing is to be emitted")
	})
	require.ErrorIs(t, err, context.Canceled)
}

func testDeadline(t *testing.T, s Subject) {
	for _, stream := range []bool{false, true} {
		r := newSlowRig(t, s, stream, Options{})
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
		err := requirePrompt(t, ctx, func() error {
			if stream {
				_, err := r.StreamGenerate(ctx, newCall("hello", true, false), new(collector).emit)
				return err
			}
			_, err := r.Generate(ctx, newCall("hello", false, false))
			return err
		})
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		requireError(t, r, err, inference.CodeDeadlineExceeded)
	}
}

func testEmitError(t *testing.T, s Subject) {
	r := newRig(t, s, Options{TokensPerSecond: 1000})
	full := errors.New("receiver is full")
	calls := 0
	_, err := r.StreamGenerate(t.Context(), newCall("hello", true, false), func([][]byte) error {
		calls++
		return full
	})
	require.ErrorIs(t, err, full)
	require.Equal(t, 1, calls, "an error ends the stream")
}

func testConcurrent(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	if r.up != nil {
		r.up.Handle(func(c *testkit.Call) {
			var n int
			at := strings.Index(string(c.Body), "number ")
			_, err := fmt.Sscanf(string(c.Body[at:]), "number %d", &n)
			r.dialect.Answer(c, fmt.Sprintf("answer %d", n), fmt.Sprintf(" error %v", err))
		})
	}
	ask := func(i int, stream bool) (string, error) {
		prompt := fmt.Sprintf("number %d", i)
		if !stream {
			resp, err := r.Generate(t.Context(), newCall(prompt, false, false))
			if err != nil {
				return "", err
			}
			return decode(t, resp.Body).Choices[0].Message.Content, nil
		}
		var c collector
		_, err := r.StreamGenerate(t.Context(), newCall(prompt, true, false), c.emit)
		text, _ := c.text(t)
		return text, err
	}
	const calls = 32
	var got [calls]string
	var errs [calls]error
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() { got[i], errs[i] = ask(i, i%2 == 0) })
	}
	wg.Wait()
	for i := range calls {
		require.NoError(t, errs[i])
		want := fmt.Sprintf("answer %d error <nil>", i)
		if r.up == nil {
			var err error
			want, err = ask(i, false)
			require.NoError(t, err)
		}
		require.Equal(t, want, got[i])
	}
}

func testUnknownKind(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	call := newCall("hello", false, false)
	call.Kind = "divination"
	_, err := r.Generate(t.Context(), call)
	requireError(t, r, err, inference.CodeInvalidRequest)
	_, err = r.StreamGenerate(t.Context(), call, new(collector).emit)
	requireError(t, r, err, inference.CodeInvalidRequest)
}

func testClose(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	_, err := r.Generate(t.Context(), newCall("hello", false, false))
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.NoError(t, r.Close(), "closing twice is no error")
}
