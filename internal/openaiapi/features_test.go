package openaiapi_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/openaiapi"
)

func TestMetadataIsReadAsFarAsItIsMetadata(t *testing.T) {
	t.Parallel()
	var many strings.Builder
	first := make(map[string]string)
	for i := range 20 {
		fmt.Fprintf(&many, `,"k%d":"%d"`, i, i)
		if i < openaiapi.MaxMetadata {
			first[fmt.Sprintf("k%d", i)] = fmt.Sprint(i)
		}
	}
	long := strings.Repeat("é", 32)
	for metadata, want := range map[string]map[string]string{
		`null`: nil, `{}`: nil, `"a"`: nil, `["a"]`: nil, `7`: nil, `{"a":1,"b":null,"c":{"d":"e"}}`: nil,
		`{"a":"1","\u0062":"\"2\""}`: {"a": "1", "b": `"2"`},
		`{"A":"1","a":"2"}`:          {"A": "1", "a": "2"},
		`{"a":1,"b":"x"}`:            {"b": "x"},
		`{"":""}`:                    {"": ""},
		`{"` + long + `":"at the bound","` + long + `x":"beyond","` + strings.Repeat(`\u00e9`, 32) + `s":"beyond"}`: {long: "at the bound"},
		`{"a":"` + strings.Repeat("v", 512) + `","b":"` + strings.Repeat("v", 513) + `"}`:                           {"a": strings.Repeat("v", 512)},
		"{" + many.String()[1:] + "}": first,
	} {
		r, err := openaiapi.ParseChat([]byte(`{"model":"m",` + messages + `,"metadata":` + metadata + `}`))
		require.NoError(t, err, metadata)
		require.True(t, maps.Equal(want, r.Metadata), "%s: %v", metadata, r.Metadata)
		require.Equal(t, want == nil, r.Metadata == nil)
	}
}

func TestEndUserOfARequest(t *testing.T) {
	t.Parallel()
	for fields, want := range map[string]string{
		`"user":"u"`:                                     "u",
		`"safety_identifier":"s"`:                        "s",
		`"user":"u","safety_identifier":"s"`:             "s",
		`"user":"u","safety_identifier":""`:              "u",
		`"user":"u","safety_identifier":null`:            "u",
		`"user":"u","safety_identifier":7`:               "u",
		`"user":{"id":"u"}`:                              "",
		`"prompt_cache_key":"c"`:                         "",
		`"user":"` + strings.Repeat("u", 513) + `"`:      "",
		`"user":"` + strings.Repeat(`\u0075`, 512) + `"`: strings.Repeat("u", 512),
	} {
		r, err := openaiapi.ParseChat([]byte(`{"model":"m",` + messages + `,` + fields + `}`))
		require.NoError(t, err, fields)
		require.Equal(t, want, r.User, fields)
	}
}

func TestPromptTokensAreEstimated(t *testing.T) {
	t.Parallel()
	user := func(content string) string {
		return `{"model":"m","messages":[{"role":"user","content":` + content + `}]`
	}
	image := `{"type":"image_url","image_url":{"url":"data:` + strings.Repeat("x", 10_000) + `"}}`
	for name, c := range map[string]struct {
		body string
		want int
	}{
		"text":              {user(`"12345678"`) + "}", 2},
		"rounded up":        {user(`"123456789"`) + "}", 3},
		"parts":             {user(`[{"type":"text","text":"1234"},{"text":"5678","type":"text"},{"type":"input_audio","input_audio":{"data":"xxxxxxxxxxxx"}}]`) + "}", 2},
		"images":            {user(`[`+image+`,{"type":"text","text":"1234"},`+image+`]`) + "}", 1 + 2*765},
		"several messages":  {`{"model":"m","messages":[{"role":"system","content":"1234"},{"role":"assistant","content":null},{"role":"user","content":"5678"}]}`, 2},
		"spelled out":       {user(`"`+strings.Repeat(`\u4e2d`, 8)+`"`) + "}", 6},
		"tools":             {user(`"1234"`) + `,"tools":[{"type":"function","function":{"name":"f"}}]}`, 1 + 12},
		"tools and old one": {user(`"1234"`) + `,"tools":[{"x":1}],"functions":[{"x":1}]}`, 1 + 5},
		"nothing":           {user(`null`) + "}", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := openaiapi.ParseChat([]byte(c.body))
			require.NoError(t, err)
			require.Equal(t, c.want, r.PromptTokens)
		})
	}
}

// Wherever a text stands that a provider reads as prompt, it counts as it does in content.
func TestTextCountsWhereverItStands(t *testing.T) {
	t.Parallel()
	const size = 100_000
	text := `"` + strings.Repeat("abcd", size/4) + `"`
	message := func(fields string) string {
		return `{"model":"m","messages":[{"role":"user","content":"x"},{"role":"assistant",` + fields + `}]}`
	}
	request := func(fields string) string {
		return `{"model":"m","messages":[{"role":"user","content":"x"}],` + fields + `}`
	}
	for name, body := range map[string]string{
		"content":             message(`"content":` + text),
		"content twice":       message(`"content":"x","content":` + text),
		"arguments":           message(`"content":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":` + text + `}}]`),
		"a custom tool":       message(`"tool_calls":[{"id":"call_1","type":"custom","custom":{"name":"f","input":` + text + `}}]`),
		"older function call": message(`"function_call":{"name":"f","arguments":` + text + `}`),
		"refusal":             message(`"refusal":` + text),
		"name":                message(`"name":` + text),
		"tool call's id":      message(`"tool_call_id":` + text),
		"role":                `{"model":"m","messages":[{"content":"x","role":` + text + `}]}`,
		"reasoning":           message(`"reasoning_content":` + text),
		"reasoning in parts":  message(`"reasoning_details":[{"type":"reasoning.text","text":` + text + `}]`),
		"unknown text":        message(`"x_thoughts":` + text),
		"unknown object":      message(`"x_thoughts":{"deep":[{"er":` + text + `}]}`),
		"unknown texts":       message(`"x_thoughts":["y",` + text + `]`),
		"escaped name":        message(`"x\u005f1":` + text),
		"refused part":        message(`"content":[{"type":"refusal","refusal":` + text + `}]`),
		"part of no type":     message(`"content":[{"text":` + text + `}]`),
		"part that is a text": message(`"content":[` + text + `]`),
		"parts in a part":     message(`"content":[{"type":"thinking","thinking":[{"type":"text","text":` + text + `}]}]`),
		"type twice":          message(`"content":[{"type":"input_audio","type":"text","text":` + text + `}]`),
		"tools":               request(`"tools":[{"type":"function","function":{"name":"f","description":` + text + `}}]`),
		"functions":           request(`"functions":[{"name":"f","description":` + text + `}]`),
		"schema":              request(`"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"description":` + text + `}}}`),
		"schema of others":    request(`"response_format":{"type":"json_object","schema":{"description":` + text + `}}`),
		"prediction":          request(`"prediction":{"type":"content","content":` + text + `}`),
		"unknown field":       request(`"documents":[{"title":"t","text":` + text + `}]`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := openaiapi.ParseChat([]byte(body))
			require.NoError(t, err)
			require.InDelta(t, size/4, r.PromptTokens, 50)
			require.InDelta(t, size/4, openaiapi.EstimatePromptTokens([]byte(body)), 50, "of an answer that was cut")
		})
	}
}

// What a model reads as no text has no length that could be told, and who asks is not read
// to it at all.
func TestWhatIsNoTextDoesNotCount(t *testing.T) {
	t.Parallel()
	data := `"` + strings.Repeat("abcd", 25_000) + `"`
	for name, c := range map[string]struct {
		body   string
		images int
	}{
		"image":         {`"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":` + data + `}}]}]`, 1},
		"image, late":   {`"messages":[{"role":"user","content":[{"image_url":{"url":` + data + `},"type":"image_url"}]}]`, 1},
		"image of ours": {`"messages":[{"role":"assistant","content":null,"images":[{"type":"image_url","image_url":{"url":` + data + `}}]}]`, 0},
		"sound":         {`"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"data":` + data + `,"format":"wav"}}]}]`, 0},
		"sound of ours": {`"messages":[{"role":"assistant","audio":{"id":"a","data":` + data + `}}]`, 0},
		"file":          {`"messages":[{"role":"user","content":[{"type":"file","file":{"file_data":` + data + `}}]}]`, 0},
		"user":          {`"messages":[{"role":"user","content":null}],"user":` + data + `,"metadata":{"a":` + data + `},"prompt_cache_key":` + data, 0},
		"nothing":       {`"messages":[{"role":"developer","content":null,"tool_calls":[],"refusal":"","weight":1,"cached":true}],"x":1,"y":null`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := openaiapi.ParseChat([]byte(`{"model":"m",` + c.body + `}`))
			require.NoError(t, err)
			require.Equal(t, c.images*765, r.PromptTokens)
		})
	}
}

// A request without any of the fields that are for routing alone costs no more than its
// model's name.
func TestParseChatAllocatesTheModelAlone(t *testing.T) { //nolint:paralleltest // AllocsPerRun counts what other goroutines allocate
	body := kilobyte()
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() { _, _ = openaiapi.ParseChat(body) }), 1.0)
}
