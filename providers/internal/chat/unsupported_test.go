package chat_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/providers/internal/chat"
)

func TestRejected(t *testing.T) {
	t.Parallel()
	r := parse(t, with(`"seed":1,"logit_bias":{"1":1}`))
	for _, policy := range []chat.Policy{chat.PolicyReject, "", "anything"} {
		u := chat.NewUnsupported(r, "acme", policy)
		require.NoError(t, u.Field("top_k"), "a field that is not there")
		err := u.Check("seed")
		var e *inference.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, inference.CodeInvalidRequest, e.Code)
		require.Equal(t, "logit_bias", e.Param)
		require.Equal(t, "acme does not support logit_bias; with the provider's setting `on_unsupported: drop` it would be left out", e.Message)
		require.Nil(t, u.Dropped())
	}
	u := chat.NewUnsupported(r, "acme", chat.PolicyReject)
	require.Equal(t, "seed", inference.AsError(u.Check()).Param, "the first in the request's order")
	require.NoError(t, u.Check("logit_bias", "seed"))

	err := u.Part("messages[2].content[0]", "input_audio")
	require.Equal(t, "messages[2].content[0]", inference.AsError(err).Param)
	require.Contains(t, inference.AsError(err).Message, "does not support input_audio at messages[2].content[0]")
}

func TestDropped(t *testing.T) {
	t.Parallel()
	r := parse(t, with(`"seed":1,"logit_bias":{"1":1},"made\nup, by \u00e9":1`))
	u := chat.NewUnsupported(r, "acme", chat.PolicyDrop)
	require.Nil(t, u.Dropped())
	require.NoError(t, u.Part("messages[2].content[0]", "input_audio"))
	require.NoError(t, u.Check("seed"))
	require.NoError(t, u.Field("logit_bias"))
	require.NoError(t, u.Part("messages[2].content[0]", "input_audio"))
	require.Equal(t, []string{"logit_bias", "made?up? by ?", "messages[2].content[0]"}, u.Dropped())
}

func TestDroppedIsBounded(t *testing.T) {
	t.Parallel()
	u := chat.NewUnsupported(parse(t, with(`"`+strings.Repeat("x", 1000)+`":1`)), "acme", chat.PolicyDrop)
	require.NoError(t, u.Check())
	for i := range 100 {
		require.NoError(t, u.Part(fmt.Sprintf("messages[%d]", i), "image_url"))
	}
	dropped := u.Dropped()
	require.Len(t, dropped, 65)
	require.Equal(t, "+37 more", dropped[64])
	require.Equal(t, strings.Repeat("x", 80)+"...", dropped[63])
}

func TestWhatCannotChangeAnAnswer(t *testing.T) {
	t.Parallel()
	const f = `"tools":[{"type":"function","function":{"name":"f"}}]`
	inert := []string{
		`"user":"u"`, `"metadata":{"a":"b"}`, `"store":true`, `"service_tier":"flex"`, `"safety_identifier":"x"`,
		`"prompt_cache_key":"k"`, `"stream":true,"stream_options":{"include_usage":true}`, `"n":1`, `"logprobs":false`,
		`"top_logprobs":0`, `"logprobs":true,"top_logprobs":0`, `"frequency_penalty":0.0`, `"presence_penalty":-0`, `"stop":[]`, `"stop":""`,
		`"tools":[ ]`, `"functions":[]`, `"logit_bias":{}`, `"top_p":1.0`, `"top_k":0`, `"response_format":{"type":"text"}`,
		`"modalities":["text"]`, `"modalities":[]`, `"tool_choice":"none"`, `"parallel_tool_calls":false`,
		`"tool_choice":"auto",` + f, `"parallel_tool_calls":true,` + f, `"unknown":""`, `"unknown":null`, `"unknown":{ }`,
		`"functions":[{"name":"f"}],"parallel_tool_calls":true,"function_call":"auto"`, `"prompt_cache_retention":"24h"`, `"seed":null`,
	}
	for _, fields := range inert {
		u := chat.NewUnsupported(parse(t, with(fields)), "acme", chat.PolicyReject)
		understood := []string{}
		for _, own := range []string{f, `"functions":[{"name":"f"}]`, `"logprobs":true`} {
			if strings.Contains(fields, own) {
				understood = append(understood, strings.Split(own, `"`)[1])
			}
		}
		require.NoError(t, u.Check(understood...), fields)
	}
	active := []string{
		`"n":2`, `"logprobs":true`, `"frequency_penalty":0.1`, `"presence_penalty":-1`, `"stop":"x"`, `"logit_bias":{"1":1}`,
		`"top_p":0.9`, `"top_k":1`, `"response_format":{"type":"json_object"}`, `"modalities":["audio"]`, `"seed":0`,
		`"temperature":1`, f, `"functions":[{"name":"f"}]`, `"unknown":0`, `"unknown":false`, `"web_search_options":{}`,
		`"unknown":1,"unknown":[]`, `"unknown":[],"unknown":1`, `"reasoning_effort":"none"`, `"thinking":{"type":"disabled"}`,
	}
	for _, fields := range active {
		field := strings.Split(fields, `"`)[1]
		u := chat.NewUnsupported(parse(t, with(fields)), "acme", chat.PolicyReject)
		require.Equal(t, field, inference.AsError(u.Field(field)).Param, fields)
	}
	choices := []string{
		`"tool_choice":"none",`, `"tool_choice":"required",`, `"parallel_tool_calls":false,`,
		`"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"f"}}]}},`,
	}
	for _, fields := range choices {
		u := chat.NewUnsupported(parse(t, with(fields+f)), "acme", chat.PolicyReject)
		require.Equal(t, strings.Split(fields, `"`)[1], inference.AsError(u.Check("tools")).Param, fields)
	}
}
