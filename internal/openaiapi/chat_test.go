package openaiapi_test

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
)

const messages = `"messages":[{"role":"user","content":"hi"}]`

func of(model string, tokens int) openaiapi.Features {
	return openaiapi.Features{Model: model, PromptTokens: tokens}
}

func TestParseChatReads(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		body string
		want openaiapi.ChatRequest
	}{
		"plain":         {`{"model":"m",` + messages + `}`, openaiapi.ChatRequest{Features: of("m", 1)}},
		"space":         {" \n{ \"model\" :\t\"m\" , " + messages + " }\r\n", openaiapi.ChatRequest{Features: of("m", 1)}},
		"streamed":      {`{"model":"m",` + messages + `,"stream":true}`, openaiapi.ChatRequest{Features: of("m", 1), Stream: true}},
		"stream false":  {`{"model":"m",` + messages + `,"stream":false}`, openaiapi.ChatRequest{Features: of("m", 1)}},
		"usage asked":   {`{"model":"m",` + messages + `,"stream":true,"stream_options":{"include_usage":true}}`, openaiapi.ChatRequest{Features: of("m", 1), Stream: true, IncludeUsage: true}},
		"usage not":     {`{"model":"m",` + messages + `,"stream":true,"stream_options":{"include_usage":false}}`, openaiapi.ChatRequest{Features: of("m", 1), Stream: true}},
		"nulls":         {`{"model":"m",` + messages + `,"stream":null,"stream_options":null,"n":null,"max_tokens":null,"temperature":null,"top_p":null,"tools":null}`, openaiapi.ChatRequest{Features: of("m", 1)}},
		"tools":         {`{"model":"m",` + messages + `,"tools":[{"type":"function"}]}`, openaiapi.ChatRequest{Features: of("m", 6), HasTools: true}},
		"no tools":      {`{"model":"m",` + messages + `,"tools":[ ]}`, openaiapi.ChatRequest{Features: of("m", 1)}},
		"images":        {`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"data:"}}]}]}`, openaiapi.ChatRequest{Features: of("m", 766), HasImages: true}},
		"escapes":       {`{"mod\u0065l":"a\u0062\"c",` + messages + `}`, openaiapi.ChatRequest{Features: of(`ab"c`, 1)}},
		"unknown kept":  {`{"model":"m",` + messages + `,"frobnicate":{"model":1},"frobnicate":2}`, openaiapi.ChatRequest{Features: of("m", 1)}},
		"numbers":       {`{"model":"m",` + messages + `,"n":128,"max_tokens":0,"max_completion_tokens":4096,"temperature":-1e-2,"top_p":1}`, openaiapi.ChatRequest{Features: of("m", 1), MaxOutput: 4096, Choices: 128}},
		"both bounds":   {`{"model":"m",` + messages + `,"max_tokens":100,"max_completion_tokens":5}`, openaiapi.ChatRequest{Features: of("m", 1), MaxOutput: 100}},
		"lone role":     {`{"model":"m","messages":[{"role":"x"}]}`, openaiapi.ChatRequest{Features: of("m", 0)}},
		"functions":     {`{"model":"m",` + messages + `,"functions":[{"name":"f"}]}`, openaiapi.ChatRequest{Features: of("m", 4), HasTools: true}},
		"odd functions": {`{"model":"m",` + messages + `,"functions":{"name":"f"}}`, openaiapi.ChatRequest{Features: of("m", 1)}},
		"no functions":  {`{"model":"m",` + messages + `,"functions":[],"tools":null}`, openaiapi.ChatRequest{Features: of("m", 1)}},
		"structured":    {`{"model":"m",` + messages + `,"response_format":{"x":{"type":"text"},"type":"json_schema","json_schema":{}}}`, openaiapi.ChatRequest{Features: of("m", 5), Structured: true}},
		"json mode":     {`{"model":"m",` + messages + `,"response_format":{"type":"json_object"}}`, openaiapi.ChatRequest{Features: of("m", 1)}},
		"odd format":    {`{"model":"m",` + messages + `,"response_format":"json_schema"}`, openaiapi.ChatRequest{Features: of("m", 1)}},
		"older bound":   {`{"model":"m",` + messages + `,"max_tokens":7}`, openaiapi.ChatRequest{Features: of("m", 1), MaxOutput: 7}},
		"absurd bound":  {`{"model":"m",` + messages + `,"max_tokens":9223372036854775807}`, openaiapi.ChatRequest{Features: of("m", 1), MaxOutput: math.MaxInt32}},
		"deep but fair": {`{"model":"m",` + messages + `,"x":` + strings.Repeat("[", 99) + strings.Repeat("]", 99) + `}`, openaiapi.ChatRequest{Features: of("m", 50)}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := openaiapi.ParseChat([]byte(c.body))
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func TestParseChatRefuses(t *testing.T) {
	t.Parallel()
	with := func(fields string) string { return `{"model":"m",` + messages + `,` + fields + `}` }
	const bad, notJSON = inference.CodeInvalidRequest, inference.CodeInvalidJSON
	cases := map[string]struct {
		body  string
		code  inference.ErrorCode
		param string
		text  string
	}{
		"empty":                {"", notJSON, "", "empty"},
		"only space":           {" \n\t", notJSON, "", "empty"},
		"no JSON":              {"hello", notJSON, "", "offset 0"},
		"cut":                  {`{"model":"m"`, notJSON, "", "offset 12"},
		"trailing data":        {with(`"n":1`) + "x", notJSON, "", "after the value"},
		"trailing object":      {with(`"n":1`) + "{}", notJSON, "", "after the value"},
		"byte order mark":      {"\xEF\xBB\xBF{}", notJSON, "", "offset 0"},
		"bad UTF-8":            {with(`"x":"` + "\xff" + `"`), notJSON, "", "UTF-8 at offset"},
		"array":                {"[]", bad, "", "object"},
		"string":               {`"x"`, bad, "", "object"},
		"too deep":             {with(`"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100)), bad, "", "100 levels"},
		"absurdly deep":        {strings.Repeat(`{"a":[`, 1_000_000), bad, "", "100 levels"},
		"metadata twice":       {with(`"metadata":{},"metadata":{}`), bad, "metadata", "more than once"},
		"metadata key twice":   {with(`"metadata":{"a":"1","\u0061":"2"}`), bad, "metadata", "more than once"},
		"user twice":           {with(`"user":"a","user":"b"`), bad, "user", "more than once"},
		"model twice":          {with(`"model":"x"`), bad, "model", "more than once"},
		"model twice, escaped": {with(`"\u006dodel":"x"`), bad, "model", "more than once"},
		"stream twice":         {with(`"stream":true,"stream":false`), bad, "stream", "more than once"},
		"messages twice":       {with(messages), bad, "messages", "more than once"},
		"options twice":        {with(`"stream":true,"stream_options":{"include_usage":true,"include_usage":false}`), bad, "stream_options.include_usage", "more than once"},
		"no model":             {`{` + messages + `}`, bad, "model", "missing"},
		"model null":           {`{"model":null,` + messages + `}`, bad, "model", "missing"},
		"model number":         {`{"model":3,` + messages + `}`, bad, "model", "string"},
		"model empty":          {`{"model":"",` + messages + `}`, bad, "model", "empty"},
		"model long":           {`{"model":"` + strings.Repeat("m", 257) + `",` + messages + `}`, bad, "model", "256"},
		"model control":        {`{"model":"a\u0007",` + messages + `}`, bad, "model", "control"},
		"model delete":         {"{\"model\":\"a\x7f\"," + messages + `}`, bad, "model", "control"},
		"no messages":          {`{"model":"m"}`, bad, "messages", "missing"},
		"messages object":      {`{"model":"m","messages":{}}`, bad, "messages", "array"},
		"messages empty":       {`{"model":"m","messages":[ ]}`, bad, "messages", "empty"},
		"messages many":        {`{"model":"m","messages":[` + strings.Repeat(`{"role":"u"},`, 10_000) + `{"role":"u"}]}`, bad, "messages", "10000"},
		"message text":         {`{"model":"m","messages":[{"role":"u"},"x"]}`, bad, "messages[1]", "object"},
		"no role":              {`{"model":"m","messages":[{"content":"x"}]}`, bad, "messages[0].role", "missing"},
		"role null":            {`{"model":"m","messages":[{"role":"u"},{"role":null}]}`, bad, "messages[1].role", "string"},
		"stream text":          {with(`"stream":"true"`), bad, "stream", "true or false"},
		"stream number":        {with(`"stream":1`), bad, "stream", "true or false"},
		"options array":        {with(`"stream":true,"stream_options":[]`), bad, "stream_options", "object"},
		"options alone":        {with(`"stream_options":{"include_usage":true}`), bad, "stream_options", "only allowed"},
		"options with false":   {with(`"stream":false,"stream_options":{}`), bad, "stream_options", "only allowed"},
		"include text":         {with(`"stream":true,"stream_options":{"include_usage":"yes"}`), bad, "stream_options.include_usage", "true or false"},
		"n zero":               {with(`"n":0`), bad, "n", "1 to 128"},
		"n many":               {with(`"n":129`), bad, "n", "1 to 128"},
		"n fraction":           {with(`"n":1.5`), bad, "n", "integer"},
		"n text":               {with(`"n":"1"`), bad, "n", "integer"},
		"max_tokens negative":  {with(`"max_tokens":-1`), bad, "max_tokens", "negative"},
		"max_tokens huge":      {with(`"max_tokens":99999999999999999999`), bad, "max_tokens", "integer"},
		"max_completion":       {with(`"max_completion_tokens":true`), bad, "max_completion_tokens", "integer"},
		"temperature":          {with(`"temperature":"hot"`), bad, "temperature", "number"},
		"top_p":                {with(`"top_p":[]`), bad, "top_p", "number"},
		"tools":                {with(`"tools":{}`), bad, "tools", "array"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := openaiapi.ParseChat([]byte(c.body))
			var e *inference.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, c.code, e.Code, e.Message)
			require.Equal(t, c.param, e.Param)
			require.Contains(t, e.Message, c.text)
		})
	}
}

// FuzzParseChat holds ParseChat's verdict about validity against encoding/json's.
func FuzzParseChat(f *testing.F) {
	for _, seed := range []string{
		`{"model":"m",` + messages + `}`, `{"a":[1,-0.5e+7,true,false,null,"\u00e9\n"]}`, `[]`, `"x"`, `{"a":`, `01`, `-`, `1.`,
		`{"model":"m","messages":[{"role":"u","content":[{"type":"image_url"}]}],"stream":true,"stream_options":{}}`,
		"\"\x1f\"", "{\"a\" : 1 ,}", `"\ud800"`, `nul`, `{"":{}} `, strings.Repeat("[", 101), "\"\xff\"", `"01234567\`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := openaiapi.ParseChat(body)
		if err == nil {
			require.True(t, json.Valid(body) && utf8.Valid(body))
			var want struct{ Model string }
			require.NoError(t, json.Unmarshal(body, &want))
			require.NotEmpty(t, r.Model)
			checkEdits(t, body)
			return
		}
		var e *inference.Error
		require.ErrorAs(t, err, &e)
		if strings.Contains(e.Message, "levels deep") {
			return
		}
		require.Equal(t, !json.Valid(body) || !utf8.Valid(body), e.Code == inference.CodeInvalidJSON, e.Message)
	})
}

func checkEdits(t *testing.T, body []byte) {
	t.Helper()
	edited, err := openaiapi.SetModel(body, "other \"model\"")
	require.NoError(t, err)
	r, err := openaiapi.ParseChat(edited)
	require.NoError(t, err)
	require.Equal(t, "other \"model\"", r.Model)
	if r.Stream {
		edited, err = openaiapi.WithStreamUsage(edited)
		require.NoError(t, err)
		r, err = openaiapi.ParseChat(edited)
		require.NoError(t, err)
		require.True(t, r.IncludeUsage)
	}
}

func FuzzValid(f *testing.F) {
	f.Add([]byte(`{"a":[1,-0.5e+7,true,false,null,"\u00e9\n"]}`))
	f.Add([]byte(`"aaaaaaaaaaaaaaa\"aaaaaaaaaaaaaaaaa\\"`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if openaiapi.Valid(data) {
			require.True(t, json.Valid(data))
		} else if json.Valid(data) {
			require.Greater(t, strings.Count(string(data), "[")+strings.Count(string(data), "{"), 100)
		}
		// Nothing that reads unchecked bytes may leave them or hang.
		_, _ = openaiapi.UsageOf(data)
		_, _ = openaiapi.SetModel(data, "m")
		_, _ = openaiapi.WithStreamUsage(data)
		_, _, _, _, _ = openaiapi.ParseError(data)
		_ = openaiapi.EstimatePromptTokens(data)
		_, _ = openaiapi.ParseModelIDs(data, 10)
		_, _ = openaiapi.ParseCompletion(data)
		var chunk openaiapi.Chunk
		var seen openaiapi.Choices
		if openaiapi.ParseChunk(data, &chunk, &seen) == nil {
			require.True(t, json.Valid(chunk.DropNullUsage(append([]byte(nil), data...))))
		}
	})
}

func kilobyte() []byte {
	text := strings.Repeat("The quick brown fox jumps over the lazy dog.\\n", 18)
	return fmt.Appendf(nil, `{"model":"gpt-4o-mini","messages":[{"role":"system","content":"You are terse."},{"role":"user","content":"%s"}],"temperature":0.7,"max_tokens":256,"stream":true,"stream_options":{"include_usage":true}}`, text)
}

func BenchmarkParseChat1KB(b *testing.B) {
	body := kilobyte()
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := openaiapi.ParseChat(body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseChat20MB(b *testing.B) {
	body := fmt.Appendf(nil, `{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:%s"}}]}]}`, strings.Repeat("iVBORw0KGgo", 20<<20/11))
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, err := openaiapi.ParseChat(body); err != nil {
			b.Fatal(err)
		}
	}
}

func TestErrorsAreDomainErrors(t *testing.T) {
	t.Parallel()
	_, err := openaiapi.ParseChat([]byte(`{"model":"m","messages":[{"role":"secret prompt`))
	var e *inference.Error
	require.ErrorAs(t, err, &e)
	require.NotContains(t, err.Error(), "secret", "a prompt must not reach an error message")
}

// A reader that does not tell cases apart takes the last of such members, and would
// serve another model than the one that was checked.
func TestParseChatRefusesTwinsInCase(t *testing.T) {
	t.Parallel()
	for member, twin := range map[string]string{
		`"Model":"other"`: "model", `"MODEL":"other"`: "model", `"\u004dodel":"x"`: "model", `"ſtream":true`: "stream", `"Stream_Options":{}`: "stream_options", `"N":3`: "n",
	} {
		_, err := openaiapi.ParseChat([]byte(`{"model":"m","messages":[{"role":"user","content":"x"}],` + member + `}`))
		e := inference.AsError(err)
		require.Equal(t, inference.CodeInvalidRequest, e.Code, member)
		require.Equal(t, twin, e.Param, member)
	}
	_, err := openaiapi.ParseChat([]byte(`{"model":"m","messages":[{"role":"user","content":"x"}],"Models":1,"Modell":2}`))
	require.NoError(t, err)
}
