package chat_test

import (
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"sluice/providers/internal/chat"
)

const (
	toolTurns = `{"role":"user","content":"weather?"},
		{"role":"assistant","content":null,"reasoning_content":"hm","tool_calls":[
			{"id":"a","type":"function","function":{"name":"f","arguments":"{\"x\":1}"},"extra_content":{"s":"1"}},
			{"id":"b","function":{"name":"g"}},
			{"id":"c","type":"custom","custom":{"name":"h"}}]},
		{"role":"tool","tool_call_id":"b","content":"cold"},
		{"role":"tool","tool_call_id":"a","content":[{"type":"text","text":"hot"}]}`
	legacyTurns = `{"role":"user","content":"weather?"},
		{"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{}"}},
		{"role":"function","name":"f","content":null}`
)

func TestMessages(t *testing.T) {
	t.Parallel()
	r := parse(t, say(`{"role":"system","content":"be terse","name":"ops","cache_control":{"type":"ephemeral"}},
		{"role":"developer","content":[]},
		{"role":"user","content":""},
		{"role":"assistant","content":[{"type":"refusal","refusal":"no"}],"refusal":"never","audio":{"id":"au"},"extra_content":{"k":1}},
		{"role":"assistant"}`))
	m := r.Messages
	require.Len(t, m, 5)
	require.Equal(t, chat.RoleSystem, m[0].Role)
	require.Equal(t, "ops", m[0].Name)
	require.Equal(t, chat.Raw(`{"type":"ephemeral"}`), m[0].CacheControl)
	require.Equal(t, "be terse", m[0].Content[0].Text)
	require.Equal(t, "messages[0].content", m[0].Content[0].Path())
	require.Equal(t, chat.RoleDeveloper, m[1].Role)
	require.Empty(t, m[1].Content)
	require.Empty(t, m[2].Content)
	require.Equal(t, chat.PartRefusal, m[3].Content[0].Type)
	require.Equal(t, "no", m[3].Content[0].Text)
	require.Equal(t, "messages[3].content[0]", m[3].Content[0].Path())
	require.Equal(t, "never", m[3].Refusal)
	require.Equal(t, "au", m[3].AudioID)
	require.Equal(t, chat.Raw(`{"k":1}`), m[3].Extra)
	require.Equal(t, "messages[4]", m[4].Path())
}

func TestToolTurns(t *testing.T) {
	t.Parallel()
	m := parse(t, say(toolTurns)).Messages
	require.Equal(t, "hm", m[1].ReasoningContent)
	require.Equal(t, []chat.ToolCall{
		{ID: "a", Type: "function", Name: "f", Arguments: `{"x":1}`, Extra: `{"s":"1"}`},
		{ID: "b", Type: "function", Name: "g"},
		{ID: "c", Type: "custom"},
	}, m[1].ToolCalls)
	require.Equal(t, "b", m[2].ToolCallID)
	require.Equal(t, "g", m[2].ToolName)
	require.Equal(t, "cold", m[2].Content[0].Text)
	require.Equal(t, "f", m[3].ToolName)
	require.Equal(t, "hot", m[3].Content[0].Text)
}

func TestLegacyTurnsBecomeToolTurns(t *testing.T) {
	t.Parallel()
	r := parse(t, say(legacyTurns))
	require.False(t, r.Legacy, "the turns are legacy, but the answer need not be")
	call := r.Messages[1].ToolCalls
	require.Equal(t, []chat.ToolCall{{ID: "function_call_1", Type: "function", Name: "f", Arguments: "{}"}}, call)
	require.Equal(t, chat.RoleTool, r.Messages[2].Role)
	require.Equal(t, "function_call_1", r.Messages[2].ToolCallID)
	require.Equal(t, "f", r.Messages[2].ToolName)
	require.Empty(t, r.Messages[2].Name)
}

func TestParts(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		part string
		want chat.Part
	}{
		"text":      {`{"type":"text","text":"a\nb","cache_control":{"type":"ephemeral"}}`, chat.Part{Type: "text", Text: "a\nb", CacheControl: `{"type":"ephemeral"}`}},
		"no text":   {`{"type":"text","text":""}`, chat.Part{Type: "text"}},
		"image":     {`{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBO","detail":"low"}}`, chat.Part{Type: "image_url", Media: chat.Media{Type: "image/png", Base64: "iVBO"}, Detail: "low"}},
		"capitals":  {`{"type":"image_url","image_url":{"url":"DATA:Image/PNG;x=y;BASE64,i\/+="}}`, chat.Part{Type: "image_url", Media: chat.Media{Type: "image/png", Base64: "i/+="}}},
		"link":      {`{"type":"image_url","image_url":{"url":"https://a/b?c=d"}}`, chat.Part{Type: "image_url", URL: "https://a/b?c=d"}},
		"plain":     {`{"type":"image_url","image_url":{"url":"HTTP://a"}}`, chat.Part{Type: "image_url", URL: "HTTP://a"}},
		"audio":     {`{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}`, chat.Part{Type: "input_audio", Media: chat.Media{Base64: "AAAA"}, Format: "wav"}},
		"file":      {`{"type":"file","file":{"file_data":"data:application/pdf;base64,AA==","filename":"a.pdf"}}`, chat.Part{Type: "file", Media: chat.Media{Type: "application/pdf", Base64: "AA=="}, Filename: "a.pdf"}},
		"file link": {`{"type":"file","file":{"file_data":"https://a/b.pdf"}}`, chat.Part{Type: "file", URL: "https://a/b.pdf"}},
		"file id":   {`{"type":"file","file":{"file_id":"file-1"}}`, chat.Part{Type: "file", FileID: "file-1"}},
		"unknown":   {`{"type":"video_url","video_url":{"url":1},"text":5,"cache_control":{}}`, chat.Part{Type: "video_url", CacheControl: "{}"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := parse(t, user(`{"type":"text","text":"0"},`+c.part)).Messages[0].Content[1]
			require.Equal(t, "messages[0].content[1]", got.Path())
			bare := parse(t, user(`{"type":"text","text":"0"},{"type":"x"}`)).Messages[0].Content[1]
			bare.Type, bare.Text, bare.Media, bare.URL = c.want.Type, c.want.Text, c.want.Media, c.want.URL
			bare.Detail, bare.Format, bare.FileID = c.want.Detail, c.want.Format, c.want.FileID
			bare.Filename, bare.CacheControl = c.want.Filename, c.want.CacheControl
			require.Equal(t, bare, got)
		})
	}
}

func TestAnImageIsNotCopied(t *testing.T) {
	t.Parallel()
	data := strings.Repeat("iVBO", 1<<18)
	r := parse(t, user(`{"type":"text","text":"first"},{"type":"image_url","image_url":{"url":"data:image/png;base64,`+data+`"}}`))
	first, image := r.Messages[0].Content[0].Text, r.Messages[0].Content[1].Media.Base64
	require.Equal(t, data, image)
	distance := uintptr(unsafe.Pointer(unsafe.StringData(image))) - uintptr(unsafe.Pointer(unsafe.StringData(first)))
	require.Less(t, distance, uintptr(200), "both are parts of one copy of the body")
}

func TestMessageFaults(t *testing.T) {
	t.Parallel()
	image := func(url string) string { return `{"type":"image_url","image_url":{"url":"` + url + `"}}` }
	const imageURL = "messages[0].content[0].image_url.url"
	call := func(call string) string { return say(`{"role":"assistant","tool_calls":[` + call + `]}`) }
	cases := map[string]struct{ body, param string }{
		"role":                    {say(`{"role":"bot","content":"x"}`), "messages[0].role"},
		"role null":               {say(`{"role":"user","content":"x"},{"role":null,"content":"x"}`), "messages[1].role"},
		"role twice":              {say(`{"role":"user","role":"system","content":"x"}`), "messages[0].role"},
		"content":                 {say(`{"role":"user","content":1}`), "messages[0].content"},
		"no content":              {say(`{"role":"user"}`), "messages[0].content"},
		"content null":            {say(`{"role":"system","content":null}`), "messages[0].content"},
		"name":                    {say(`{"role":"user","content":"x","name":1}`), "messages[0].name"},
		"cache_control":           {say(`{"role":"user","content":"x","cache_control":"x"}`), "messages[0].cache_control"},
		"refusal":                 {say(`{"role":"assistant","refusal":1}`), "messages[0].refusal"},
		"reasoning_content":       {say(`{"role":"assistant","reasoning_content":1}`), "messages[0].reasoning_content"},
		"audio":                   {say(`{"role":"assistant","audio":{}}`), "messages[0].audio.id"},
		"extra_content":           {say(`{"role":"assistant","extra_content":[]}`), "messages[0].extra_content"},
		"part":                    {user(`"x"`), "messages[0].content[0]"},
		"part without type":       {user(`{"text":"x"}`), "messages[0].content[0].type"},
		"part's cache_control":    {user(`{"type":"text","text":"x","cache_control":1}`), "messages[0].content[0].cache_control"},
		"no text":                 {user(`{"type":"text"}`), "messages[0].content[0].text"},
		"text":                    {user(`{"type":"text","text":"x"},{"type":"text","text":1}`), "messages[0].content[1].text"},
		"refusal part":            {user(`{"type":"refusal"}`), "messages[0].content[0].refusal"},
		"no image":                {user(`{"type":"image_url"}`), "messages[0].content[0].image_url"},
		"image as a string":       {user(`{"type":"image_url","image_url":"https://x"}`), "messages[0].content[0].image_url"},
		"no url":                  {user(`{"type":"image_url","image_url":{}}`), imageURL},
		"empty url":               {user(image("")), imageURL},
		"url's scheme":            {user(image("file:///etc/passwd")), imageURL},
		"url is a scheme":         {user(image("https://")), imageURL},
		"no data":                 {user(image("data:image/png;base64")), imageURL},
		"not base64":              {user(image("data:image/png,abc")), imageURL},
		"no media type":           {user(image("data:;base64,aaaa")), imageURL},
		"half a media type":       {user(image("data:image/;base64,aaaa")), imageURL},
		"media type with a quote": {user(image(`data:image/p\"ng;base64,aaaa`)), imageURL},
		"broken base64":           {user(image("data:image/png;base64,aa-_")), imageURL},
		"base64 in lines":         {user(image(`data:image/png;base64,aaa\n`)), imageURL},
		"short base64":            {user(image("data:image/png;base64,aaa")), imageURL},
		"padding inside":          {user(image("data:image/png;base64,aa==aaaa")), imageURL},
		"only padding":            {user(image("data:image/png;base64,====")), imageURL},
		"no bytes":                {user(image("data:image/png;base64,")), imageURL},
		"detail":                  {user(`{"type":"image_url","image_url":{"url":"https://x","detail":1}}`), "messages[0].content[0].image_url.detail"},
		"audio data":              {user(`{"type":"input_audio","input_audio":{"data":"?","format":"wav"}}`), "messages[0].content[0].input_audio.data"},
		"audio format":            {user(`{"type":"input_audio","input_audio":{"data":"AAAA"}}`), "messages[0].content[0].input_audio.format"},
		"no file":                 {user(`{"type":"file","file":{"filename":"x"}}`), "messages[0].content[0].file"},
		"two files":               {user(`{"type":"file","file":{"file_id":"x","file_data":"https://x"}}`), "messages[0].content[0].file.file_id"},
		"file data":               {user(`{"type":"file","file":{"file_data":"AAAA"}}`), "messages[0].content[0].file.file_data"},
		"file id":                 {user(`{"type":"file","file":{"file_id":1}}`), "messages[0].content[0].file.file_id"},
		"tool_calls":              {say(`{"role":"assistant","tool_calls":{}}`), "messages[0].tool_calls"},
		"call":                    {call(`1`), "messages[0].tool_calls[0]"},
		"call without id":         {call(`{"function":{"name":"f"}}`), "messages[0].tool_calls[0].id"},
		"call's type":             {call(`{"id":"a","type":""}`), "messages[0].tool_calls[0].type"},
		"call of nothing":         {call(`{"id":"a","type":"function"}`), "messages[0].tool_calls[0].function"},
		"call without name":       {call(`{"id":"a","function":{"arguments":""}}`), "messages[0].tool_calls[0].function.name"},
		"call's arguments":        {call(`{"id":"a","function":{"name":"f","arguments":{}}}`), "messages[0].tool_calls[0].function.arguments"},
		"function_call":           {say(`{"role":"assistant","function_call":{"name":""}}`), "messages[0].function_call.name"},
		"both kinds of calls":     {say(`{"role":"assistant","tool_calls":[{"id":"a","function":{"name":"f"}}],"function_call":{"name":"f"}}`), "messages[0].function_call"},
		"answer without id":       {say(`{"role":"tool","content":"x"}`), "messages[0].tool_call_id"},
		"answer to nothing":       {say(`{"role":"tool","tool_call_id":"a","content":"x"}`), "messages[0].tool_call_id"},
		"answer without content":  {say(toolTurns + `,{"role":"tool","tool_call_id":"a"}`), "messages[4].content"},
		"legacy without name":     {say(`{"role":"function","content":"x"}`), "messages[0].name"},
		"legacy without call":     {say(`{"role":"function","name":"f","content":"x"}`), "messages[0].name"},
		"too many parts":          {user(strings.Repeat(`{"type":"text","text":""},`, chat.MaxParts) + `{"type":"text","text":""}`), "messages[0].content[10000]"},
		"too many parts in all":   {say(`{"role":"user","content":[` + strings.Repeat(`{"type":"x"},`, chat.MaxParts-1) + `{"type":"x"}]},{"role":"user","content":"x"}`), "messages[1].content"},
		"too many calls":          {call(strings.Repeat(`{"id":"a","type":"x"},`, chat.MaxToolCalls) + `{"id":"a","type":"x"}`), "messages[0].tool_calls"},
		"too many calls in all":   {say(`{"role":"assistant","tool_calls":[{"id":"a","type":"x"}]},{"role":"assistant","tool_calls":[` + strings.Repeat(`{"id":"a","type":"x"},`, chat.MaxToolCalls-1) + `{"id":"a","type":"x"}]}`), "messages[1].tool_calls[9999]"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refused(t, c.body, c.param)
		})
	}
}
