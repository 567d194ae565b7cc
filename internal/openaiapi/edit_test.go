package openaiapi_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/openaiapi"
)

func TestSetModel(t *testing.T) {
	t.Parallel()
	cases := map[string]struct{ body, want string }{
		"replaced":       {`{ "z": 1.50, "model" : "old" ,"x":{"model":"inner"}}`, `{ "z": 1.50, "model" : "new" ,"x":{"model":"inner"}}`},
		"same":           {`{"model":"new"}`, `{"model":"new"}`},
		"same, escaped":  {`{"model":"n\u0065w"}`, `{"model":"n\u0065w"}`},
		"escaped key":    {`{"\u006dodel":"old"}`, `{"\u006dodel":"new"}`},
		"null":           {`{"model":null}`, `{"model":"new"}`},
		"missing":        {`{"a":1}`, `{"model":"new","a":1}`},
		"empty object":   {" {\n} ", " {\"model\":\"new\"\n} "},
		"leading space":  {"\n {\"model\":\"old\"}", "\n {\"model\":\"new\"}"},
		"decoy in text":  {`{"a":"\"model\":\"old\"","model":"old"}`, `{"a":"\"model\":\"old\"","model":"new"}`},
		"backslash tail": {`{"a":"\\","model":"old"}`, `{"a":"\\","model":"new"}`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := []byte(c.body)
			got, err := openaiapi.SetModel(body, "new")
			require.NoError(t, err)
			require.Equal(t, c.want, string(got))
			require.Equal(t, c.body, string(body), "the caller's bytes must stay")
		})
	}
	_, err := openaiapi.SetModel([]byte(`[1]`), "new")
	require.Error(t, err)
}

func TestWithStreamUsage(t *testing.T) {
	t.Parallel()
	cases := map[string]struct{ body, want string }{
		"missing":  {`{"model":"m", "seed":1e2}`, `{"stream_options":{"include_usage":true},"model":"m", "seed":1e2}`},
		"null":     {`{"stream_options":null,"a":1}`, `{"stream_options":{"include_usage":true},"a":1}`},
		"empty":    {`{"stream_options":{ }}`, `{"stream_options":{"include_usage":true }}`},
		"other":    {`{"stream_options": {"x":1}}`, `{"stream_options": {"include_usage":true,"x":1}}`},
		"false":    {`{"stream_options":{"x":1,"include_usage" : false }}`, `{"stream_options":{"x":1,"include_usage" : true }}`},
		"already":  {`{"stream_options":{"include_usage":true}}`, `{"stream_options":{"include_usage":true}}`},
		"a member": {`{"x":{"stream_options":1}}`, `{"stream_options":{"include_usage":true},"x":{"stream_options":1}}`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := []byte(c.body)
			got, err := openaiapi.WithStreamUsage(body)
			require.NoError(t, err)
			require.Equal(t, c.want, string(got))
			require.Equal(t, c.body, string(body), "the caller's bytes must stay")
		})
	}
	_, err := openaiapi.WithStreamUsage([]byte(`x`))
	require.Error(t, err)
}

func FuzzAppendString(f *testing.F) {
	f.Add("a\"\\\n\t\r\x00\x7fé\u2028\xff")
	f.Fuzz(func(t *testing.T, s string) {
		var got, want string
		require.NoError(t, json.Unmarshal(openaiapi.AppendString(nil, s), &got))
		encoded, err := json.Marshal(s)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(encoded, &want))
		require.Equal(t, want, got)
	})
}
