package anthropic_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

// TestRefusals has answers that hold more or less beside the refusal.
func TestRefusals(t *testing.T) {
	t.Parallel()
	const refused = `{"type":"message_delta","delta":{"stop_reason":"refusal","stop_details":{"explanation":"I must not."}},"usage":{"output_tokens":1}}`
	for name, c := range map[string]struct {
		fields, content string
		events          []string
		plain, streamed bool // it is an error
	}{
		"nothing else": {"", ``, nil, true, true},
		"empty text":   {"", `{"type":"text","text":""}`, []string{`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`}, true, true},
		"text": {
			"", `{"type":"text","text":"a"}`,
			[]string{`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"a"}}`},
			false, false,
		},
		"a call": {
			"", `{"type":"tool_use","id":"i","name":"f","input":{}}`,
			[]string{`{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"i","name":"f","input":{}}}`},
			false, false,
		},
		"thoughts that were shown": {
			"", `{"type":"thinking","thinking":"t","signature":"s"}`,
			[]string{`{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"t"}}`},
			true, false,
		},
		"thoughts that were not": {
			`,"reasoning":{"exclude":true}`, `{"type":"thinking","thinking":"t","signature":"s"}`,
			[]string{`{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"t"}}`},
			true, true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up, p := setup(t, nil)
			up.Handle(func(call *testkit.Call) {
				if !call.Streamed() {
					call.JSON(200, `{"content":[`+c.content+`],"stop_reason":"refusal","stop_details":{"explanation":"I must not."}}`)
					return
				}
				call.Stream()
				call.Raw(event(`{"type":"message_start","message":{"id":"msg_1","model":"m","usage":{"input_tokens":7}}}`))
				for _, e := range append(c.events, refused, `{"type":"message_stop"}`) {
					call.Raw(event(e))
				}
			})
			call := ask(c.fields)
			_, err := p.Generate(t.Context(), call)
			require.NoError(t, err)
			call.RefusalIsError = true
			_, err = p.Generate(t.Context(), call)
			require.Equal(t, c.plain, err != nil)
			check := func(err error) {
				e := requireCode(t, err, inference.CodeUpstreamRejected)
				require.Equal(t, inference.RefusalContent, e.Refusal)
				require.Equal(t, "claude refused the content: I must not.", e.Message)
			}
			if c.plain {
				check(err)
			}

			call = ask(c.fields + `,"stream":true`)
			batches, _, err := gather(t, p, call)
			require.NoError(t, err)
			require.Contains(t, strings.Join(batches[len(batches)-1], ""), "content_filter")
			call.RefusalIsError = true
			batches, sum, err := gather(t, p, call)
			require.Equal(t, c.streamed, err != nil)
			if c.streamed {
				check(err)
				require.Empty(t, batches)
			}
			require.Equal(t, inference.Usage{PromptTokens: 7, CompletionTokens: 1, Known: true}, sum.Usage)
		})
	}
}
