package gemini_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

// TestRefusals has answers that hold more or less beside the refusal.
func TestRefusals(t *testing.T) {
	t.Parallel()
	candidate := func(parts, reason, more string) string {
		return `{"content":{"parts":[` + parts + `]},"finishReason":"` + reason + `"` + more + `}`
	}
	answer := func(candidates ...string) string {
		return `{"candidates":[` + strings.Join(candidates, ",") + `],"usageMetadata":{"promptTokenCount":7},"modelVersion":"m"}`
	}
	for name, c := range map[string]struct {
		body            string
		plain, streamed bool // it is an error
		message         string
	}{
		"blocked prompt":     {`{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":7}}`, true, true, "gemini refused the content: gemini blocked the prompt: SAFETY"},
		"safety":             {answer(candidate("", "SAFETY", "")), true, true, "gemini refused the content: gemini held the answer back: SAFETY"},
		"prohibited":         {answer(candidate("", "PROHIBITED_CONTENT", `,"finishMessage":"No."`)), true, true, "gemini refused the content: No."},
		"blocklist":          {answer(candidate("", "BLOCKLIST", "")), true, true, "BLOCKLIST"},
		"personal data":      {answer(candidate("", "SPII", "")), true, true, "SPII"},
		"recitation":         {answer(candidate("", "RECITATION", "")), true, true, "RECITATION"},
		"both candidates":    {answer(candidate("", "SAFETY", ""), candidate("", "SPII", `,"index":1`)), true, true, "SAFETY"},
		"language":           {answer(candidate("", "LANGUAGE", "")), false, false, ""},
		"text first":         {answer(candidate(`{"text":"a"}`, "SAFETY", "")), false, false, ""},
		"a call first":       {answer(candidate(`{"functionCall":{"name":"f"}}`, "SAFETY", "")), false, false, ""},
		"thoughts shown":     {answer(candidate(`{"text":"t","thought":true}`, "SAFETY", "")), true, false, "SAFETY"},
		"one of two":         {answer(candidate("", "SAFETY", ""), candidate(`{"text":"a"}`, "STOP", `,"index":1`)), false, false, ""},
		"the other of two":   {answer(candidate(`{"text":"a"}`, "STOP", ""), candidate("", "SAFETY", `,"index":1`)), false, false, ""},
		"an ordinary answer": {answer(candidate(`{"text":"a"}`, "STOP", "")), false, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, nil)
			r.answers(c.body)
			call := chatCall(`"n":2`)
			r.generate(t, call)
			require.NoError(t, r.stream(t, call).err)
			call.RefusalIsError = true
			check := func(err error, isError bool) {
				if !isError {
					require.NoError(t, err)
					return
				}
				e := requireCode(t, err, inference.CodeUpstreamRejected)
				require.Equal(t, inference.RefusalContent, e.Refusal)
				require.Equal(t, 400, e.Status)
				require.Contains(t, e.Message, c.message)
			}
			_, err := r.Generate(t.Context(), call)
			check(err, c.plain)
			s := r.stream(t, call)
			check(s.err, c.streamed)
			require.EqualValues(t, 7, s.sum.Usage.PromptTokens)
			if c.streamed {
				require.Empty(t, s.chunks)
				require.False(t, s.sum.Usage.Estimated)
			}
		})
	}
}
