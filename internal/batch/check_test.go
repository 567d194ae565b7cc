package batch

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/store"
)

func chatRules() Rules {
	return Rules{Endpoint: openaiapi.EndpointChat, MaxLines: 3, MaxLineBytes: 1000}
}

// chatLine is a line that is in order.
func chatLine(customID, model string) string {
	return fmt.Sprintf(`{"custom_id":%q,"method":"POST","url":"/v1/chat/completions","body":{"model":%q,"messages":[{"role":"user","content":"hi"}]}}`, customID, model)
}

func TestALineInOrder(t *testing.T) {
	t.Parallel()
	call, wrong := NewChecker(chatRules()).Check(Line{Number: 1, Text: []byte(chatLine("a\u00e9", "m"))})
	require.Nil(t, wrong)
	require.Equal(t, "a\u00e9", call.CustomID)
	require.Equal(t, "m", call.Request.Model)
	require.JSONEq(t, `{"model":"m","messages":[{"role":"user","content":"hi"}]}`, string(call.Body))

	rules := chatRules()
	rules.Endpoint = openaiapi.EndpointEmbeddings
	call, wrong = NewChecker(rules).Check(Line{Number: 1, Text: []byte(`{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"e","input":["x","y"]}}`)})
	require.Nil(t, wrong)
	require.Equal(t, "e", call.Request.Model)
}

func TestFaultsOfALine(t *testing.T) {
	t.Parallel()
	good := chatLine("a", "m")
	without := func(old, with string) string { return strings.Replace(good, old, with, 1) }
	for name, c := range map[string]struct{ line, code, param string }{
		"no JSON":              {"{", FaultInvalidJSON, ""},
		"no object":            {`["a"]`, FaultInvalidJSON, ""},
		"no UTF-8":             {without(`"hi"`, "\"\xff\""), FaultInvalidJSON, ""},
		"two objects":          {good + good, FaultInvalidJSON, ""},
		"twice the same":       {without(`"method"`, `"custom_id":"b","method"`), FaultInvalid, ""},
		"another's case":       {without(`"method"`, `"Custom_ID":"b","method"`), FaultInvalid, ""},
		"no custom_id":         {without(`"custom_id":"a",`, ``), FaultMissing, "custom_id"},
		"an empty one":         {without(`"custom_id":"a"`, `"custom_id":""`), FaultMissing, "custom_id"},
		"null":                 {without(`"custom_id":"a"`, `"custom_id":null`), FaultMissing, "custom_id"},
		"a number":             {without(`"custom_id":"a"`, `"custom_id":1`), FaultInvalid, "custom_id"},
		"a long one":           {without(`"custom_id":"a"`, `"custom_id":"`+strings.Repeat("x", 513)+`"`), FaultInvalid, "custom_id"},
		"a NUL":                {without(`"custom_id":"a"`, `"custom_id":"a\u0000"`), FaultInvalid, "custom_id"},
		"half a character":     {without(`"custom_id":"a"`, `"custom_id":"\ud800"`), "", ""},
		"no method":            {without(`"method":"POST",`, ``), FaultMissing, "method"},
		"another method":       {without(`POST`, `GET`), FaultMethod, "method"},
		"no url":               {without(`"url":"/v1/chat/completions",`, ``), FaultMissing, "url"},
		"another url":          {without(`/v1/chat/completions`, `/v1/embeddings`), FaultURL, "url"},
		"no body":              {`{"custom_id":"a","method":"POST","url":"/v1/chat/completions"}`, FaultMissing, "body"},
		"a body that is none":  {`{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":"x"}`, FaultInvalid, "body"},
		"no model":             {without(`"model":"m",`, ``), FaultMissing, "body.model"},
		"an empty model":       {without(`"model":"m"`, `"model":""`), FaultInvalid, "body.model"},
		"no messages":          {without(`"messages"`, `"texts"`), FaultInvalid, "body.messages"},
		"a stream":             {without(`"model"`, `"stream":true,"model"`), FaultInvalid, "body.stream"},
		"explicitly no stream": {without(`"model"`, `"stream":false,"model"`), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, wrong := NewChecker(chatRules()).Check(Line{Number: 7, Text: []byte(c.line)})
			if c.code == "" {
				require.Nil(t, wrong)
				return
			}
			require.NotNil(t, wrong)
			require.Equal(t, store.BatchFault{Code: c.code, Param: c.param, Line: 7, Message: wrong.Message}, *wrong)
			require.NotEmpty(t, wrong.Message)
			require.LessOrEqual(t, len(wrong.Message), store.MaxTextBytes)
		})
	}
	_, wrong := NewChecker(chatRules()).Check(Line{Number: 2})
	require.Equal(t, FaultLineTooLong, wrong.Code)
	require.Equal(t, 2, wrong.Line)
}

func TestFaultsAcrossLines(t *testing.T) {
	t.Parallel()
	c := NewChecker(chatRules())
	check := func(id, model string) string {
		_, wrong := c.Check(Line{Number: 1, Text: []byte(chatLine(id, model))})
		if wrong == nil {
			return ""
		}
		return wrong.Code
	}
	c.Know("known")
	require.Equal(t, FaultDuplicate, check("known", "m"))
	require.Empty(t, check("a", "m"))
	require.Equal(t, FaultDuplicate, check("a", "m"))
	require.Empty(t, check("b", "other"))
	require.Equal(t, 3, c.Lines())
	require.Equal(t, FaultDuplicate, check("b", "m"), "rather than one too many")
	require.Equal(t, FaultTooMany, check("c", "m"))
	require.Equal(t, 3, c.Lines())

	rules := chatRules()
	rules.SingleModel = true
	c = NewChecker(rules)
	require.Empty(t, check("a", "m"))
	require.Equal(t, FaultMixedModels, check("b", "other"))
	require.Empty(t, check("c", "m"))
	c = NewChecker(rules)
	c.Expect("other") // of lines that were stored before
	require.Equal(t, FaultMixedModels, check("d", "m"))
	require.Empty(t, check("e", "other"))
	_, wrong := c.Check(Line{Number: 1, Text: []byte(chatLine("f", strings.Repeat("\u00e9", 128)))})
	require.LessOrEqual(t, len(wrong.Message), store.MaxTextBytes)
}

func TestARefusalIsAFault(t *testing.T) {
	t.Parallel()
	f := Refused(3, &inference.Error{Code: inference.CodeModelNotFound, Param: "model", Message: "nobody serves it"})
	require.Equal(t, store.BatchFault{Code: "model_not_found", Param: "body.model", Message: "nobody serves it", Line: 3}, *f)
}

func FuzzCheck(f *testing.F) {
	f.Add([]byte(chatLine("a", "m")))
	f.Add([]byte(`{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":1}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c := NewChecker(chatRules())
		call, wrong := c.Check(Line{Number: 1, Text: append([]byte{}, text...)})
		require.Equal(t, wrong == nil, c.Lines() == 1)
		if wrong != nil {
			require.NotEmpty(t, wrong.Code)
			require.LessOrEqual(t, len(wrong.Message), maxFaultTextLength)
			return
		}
		require.NotEmpty(t, call.CustomID)
		require.LessOrEqual(t, len(call.CustomID), maxCustomID)
		_, err := openaiapi.ParseChat(call.Body)
		require.NoError(t, err)
	})
}
