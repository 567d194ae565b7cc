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

// A request without any of the fields that are for routing alone costs no more than its
// model's name.
func TestParseChatAllocatesTheModelAlone(t *testing.T) { //nolint:paralleltest // AllocsPerRun counts what other goroutines allocate
	body := kilobyte()
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() { _, _ = openaiapi.ParseChat(body) }), 1.0)
}
