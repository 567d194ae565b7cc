package openai_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/providers/openai"
)

const (
	role     = `{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`
	filters  = `{"choices":[],"prompt_filter_results":[{"prompt_index":0}]}`
	says     = `{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}`
	withheld = `{"choices":[{"index":0,"delta":{},"finish_reason":"content_filter"}]}`
	stopped  = `{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`
	other    = `{"choices":[{"index":1,"delta":{"content":"b"},"finish_reason":null}]}`
	closed   = `{"choices":[{"index":1,"delta":{},"finish_reason":"content_filter"}]}`
	used     = `{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":0}}`
)

func TestStreamedRefusals(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		chunks  []string
		refused bool
		code    inference.ErrorCode // of another error
	}{
		"at once":             {[]string{withheld, "[DONE]"}, true, ""},
		"after the role":      {[]string{role, withheld, "[DONE]"}, true, ""},
		"of Azure":            {[]string{filters, role, withheld, used, "[DONE]"}, true, ""},
		"without its end":     {[]string{role, withheld}, true, ""},
		"of both choices":     {[]string{withheld, closed, "[DONE]"}, true, ""},
		"of one choice":       {[]string{withheld, other, closed, "[DONE]"}, false, ""},
		"after content":       {[]string{role, says, withheld, "[DONE]"}, false, ""},
		"nothing but the end": {[]string{role, stopped, "[DONE]"}, false, ""},
		"nothing at all":      {[]string{role, "[DONE]"}, false, ""},
		"much of nothing":     {append(repeated(role, 20), withheld, "[DONE]"), false, ""},
		"a lot of nothing":    {[]string{strings.Replace(role, `""`, `"","x":"`+strings.Repeat("x", 70_000)+`"`, 1), withheld, "[DONE]"}, false, ""},
		"cut before it":       {[]string{role}, false, inference.CodeUpstreamCut},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, up := setup(t, nil)
			up.Handle(func(call *testkit.Call) {
				for _, chunk := range c.chunks {
					call.Chunk(chunk)
				}
			})
			call := chat(`{"model":"m","stream":true}`)
			call.RefusalIsError, call.IncludeUsage = true, true
			var got sink
			sum, err := p.StreamGenerate(t.Context(), call, got.emit)
			switch {
			case c.refused:
				e := inference.AsError(err)
				require.Equal(t, inference.CodeUpstreamRejected, e.Code)
				require.Equal(t, inference.RefusalContent, e.Refusal)
				require.Empty(t, got.chunks)
				require.True(t, sum.Usage.Known)
			case c.code != "":
				require.Equal(t, c.code, inference.AsError(err).Code)
				require.Empty(t, got.chunks, "a call that said nothing can be made again")
			default:
				require.NoError(t, err)
				require.Equal(t, strings.Join(c.chunks, "\n"), strings.Join(append(got.chunks, "[DONE]"), "\n"), "byte for byte")
			}
		})
	}
}

func repeated(chunk string, times int) []string {
	all := make([]string, times)
	for i := range all {
		all[i] = chunk
	}
	return all
}

// TestNothingWaitsForARefusal sees when chunks leave: the role may wait for the first
// content where a refusal is an error, and nothing else ever does.
func TestNothingWaitsForARefusal(t *testing.T) {
	t.Parallel()
	for _, isError := range []bool{false, true} {
		p, up := setup(t, nil)
		gate, seen := make(chan struct{}), make(chan string, 10)
		up.Handle(func(c *testkit.Call) {
			c.Chunk(role)
			if isError {
				c.Pause(20 * time.Millisecond) // the next chunk takes the place of this one in the reader's buffer
			} else {
				c.Wait(gate)
			}
			c.Chunk(says)
			c.Wait(gate)
			c.Chunk(stopped)
			c.Done()
		})
		call := chat(`{"model":"m","stream":true}`)
		call.RefusalIsError = isError
		result := make(chan error, 1)
		go func() {
			_, err := p.StreamGenerate(t.Context(), call, func(chunks [][]byte) error {
				for _, c := range chunks {
					seen <- string(c)
				}
				return nil
			})
			result <- err
		}()
		for i, want := range []string{role, says} {
			select {
			case got := <-seen:
				require.Equal(t, want, got)
			case <-time.After(5 * time.Second):
				require.Fail(t, "a chunk is held back", want)
			}
			if i == 0 && !isError {
				gate <- struct{}{}
			}
		}
		close(gate)
		require.NoError(t, <-result)
	}
}

// TestAnEndThatIsNoRefusalLeaves sees that an answer of nothing is not held back either.
func TestAnEndThatIsNoRefusalLeaves(t *testing.T) {
	t.Parallel()
	p, up := setup(t, nil)
	gate := make(chan struct{})
	left := false
	up.Handle(func(c *testkit.Call) {
		c.Chunk(role)
		c.Chunk(stopped)
		c.Wait(gate)
		c.Done()
	})
	call := chat(`{"model":"m","stream":true}`)
	call.RefusalIsError = true
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := p.StreamGenerate(ctx, call, func([][]byte) error {
		if !left {
			left = true
			close(gate)
		}
		return nil
	})
	require.NoError(t, err)
}

func TestPlainRefusals(t *testing.T) {
	t.Parallel()
	p, up := setup(t, nil)
	for message, refused := range map[string]bool{
		`{"content":null}`: true, `{"content":""}`: true, `{}`: true, `{"content":"","tool_calls":[],"function_call":null}`: true,
		`{"content":"a"}`: false, `{"content":null,"tool_calls":[{"id":"x"}]}`: false, `{"function_call":{"name":"f"}}`: false,
		`{"content":[{"type":"text"}]}`: false, `{"refusal":"I must not."}`: true,
	} {
		for _, finish := range []string{"content_filter", "stop"} {
			body := `{"choices":[{"message":` + message + `,"finish_reason":"` + finish + `","note":"content_filter"}]}`
			up.Handle(func(c *testkit.Call) { c.JSON(200, body) })
			call := chat(`{"model":"m"}`)
			resp, err := p.Generate(t.Context(), call)
			require.NoError(t, err)
			require.Equal(t, body, string(resp.Body))
			call.RefusalIsError = true
			_, err = p.Generate(t.Context(), call)
			if !refused || finish == "stop" {
				require.NoError(t, err, body)
				continue
			}
			e := inference.AsError(err)
			require.Equal(t, inference.RefusalContent, e.Refusal, body)
			if strings.Contains(message, "must not") {
				require.Contains(t, e.Message, "I must not.")
			}
		}
	}
	up.Handle(func(c *testkit.Call) {
		c.JSON(200, `{"choices":[{"message":{"content":null},"finish_reason":"content_filter"},{"message":{"content":"a"},"finish_reason":"content_filter"}]}`)
	})
	call := chat(`{"model":"m","n":2}`)
	call.RefusalIsError = true
	_, err := p.Generate(t.Context(), call)
	require.NoError(t, err, "the other choice says something")
}

func TestFamilies(t *testing.T) {
	t.Parallel()
	all := inference.Traits{Chat: true, Streaming: true, Tools: true, Images: true, StructuredOutput: true, Embeddings: true}
	embeds := inference.Traits{Embeddings: true}
	for name, c := range map[string]struct {
		change func(*openai.Options)
		want   []inference.ModelTraits
	}{
		"compatible": {func(*openai.Options) {}, nil},
		"alike":      {func(o *openai.Options) { o.BaseURL = "https://api.openai.com.example.org/v1" }, nil},
		"OpenAI": {func(o *openai.Options) { o.BaseURL = "https://api.openai.com/v1" }, []inference.ModelTraits{
			{Models: []string{"text-embedding-3-small", "gpt-4o"}, Traits: embeds},
			{Models: []string{"gpt-3.5-turbo"}, Traits: inference.Traits{Chat: true, Streaming: true, Tools: true}},
			{Models: []string{"whisper-1"}},
		}},
		"in Europe": {func(o *openai.Options) {
			o.BaseURL = "https://eu.api.openai.com/v1"
			o.Models = []string{"whisper-1"}
			o.ModelMap = nil
		}, []inference.ModelTraits{
			{Models: []string{"whisper-1"}},
		}},
		"Azure": {func(o *openai.Options) { o.BaseURL = "https://mine.openai.azure.com/openai/v1" }, []inference.ModelTraits{
			{Models: []string{"text-embedding-3-small"}, Traits: embeds},
			{Models: []string{"gpt-3.5-turbo"}, Traits: inference.Traits{Chat: true, Streaming: true, Tools: true}},
			{Models: []string{"whisper-1"}},
			{Models: []string{"gpt-4o"}, Traits: inference.Traits{Chat: true, Streaming: true, Tools: true, Images: true, StructuredOutput: true}},
		}},
		"Azure behind a gate": {func(o *openai.Options) { o.AzureVersion = "2024-10-21"; o.Models = []string{"gpt-35-turbo"} }, []inference.ModelTraits{
			{Models: []string{"gpt-35-turbo"}, Traits: inference.Traits{Chat: true, Streaming: true, Tools: true}},
		}},
	} {
		p, _ := setup(t, func(o *openai.Options) {
			o.Models = []string{"text-embedding-3-small", "gpt-3.5-turbo", "whisper-1", "gpt-4o", "mine"}
			o.ModelMap = map[string]string{"gpt-4o": "text-embedding-3-large"}
			c.change(o)
		})
		caps, err := p.Capabilities(t.Context())
		require.NoError(t, err)
		require.Equal(t, all, caps.Traits, name)
		require.Equal(t, c.want, caps.Special, name)
	}
	p, _ := setup(t, func(o *openai.Options) {
		o.Paths = openai.Paths{Own: true, Embeddings: "embed"}
		o.Models = []string{"m"}
	})
	caps, err := p.Capabilities(t.Context())
	require.NoError(t, err)
	require.Equal(t, embeds, caps.Traits, "no address for chats, no chats")
}
