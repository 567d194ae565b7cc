package chat_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/providers/internal/chat"
)

func TestTools(t *testing.T) {
	t.Parallel()
	r := parse(t, with(`"tools":[
		{"type":"function","function":{"name":"f","description":"does","parameters":{"type": "object"},"strict":false,"cache_control":{"a":1}}},
		{"type":"function","function":{"name":"g","cache_control":{"a":1}},"cache_control":{"b":2}},
		{"type":"web_search","function":7}]`))
	require.Len(t, r.Tools, 3)
	require.False(t, r.Legacy)
	f := r.Tools[0]
	require.Equal(t, []any{"function", "f", "does", chat.Raw(`{"type": "object"}`), new(false), chat.Raw(`{"a":1}`)},
		[]any{f.Type, f.Name, f.Description, f.Parameters, f.Strict, f.CacheControl})
	require.Equal(t, "tools[0]", f.Path())
	require.Nil(t, r.Tools[1].Strict)
	require.Empty(t, r.Tools[1].Parameters)
	require.Equal(t, chat.Raw(`{"b":2}`), r.Tools[1].CacheControl)
	require.Equal(t, "web_search", r.Tools[2].Type)
	require.Equal(t, "tools[2]", r.Tools[2].Path())
}

func TestLegacyFunctions(t *testing.T) {
	t.Parallel()
	r := parse(t, with(`"functions":[{"name":"f"},{"name":"g","description":"d","parameters":{}}],"function_call":{"name":"g"},"tools":[],"parallel_tool_calls":true`))
	require.True(t, r.Legacy)
	require.Equal(t, "g", r.Tools[1].Name)
	require.Equal(t, "function", r.Tools[1].Type)
	require.Equal(t, chat.Raw("{}"), r.Tools[1].Parameters)
	require.Equal(t, "functions[1]", r.Tools[1].Path())
	require.Equal(t, chat.ToolChoice{Mode: chat.ChoiceFunction, Name: "g"}, r.ToolChoice)
	require.Equal(t, new(false), r.ParallelToolCalls, "the answer has room for one call")
}

func TestToolChoice(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		fields string
		want   chat.ToolChoice
	}{
		"default":          {twoTools, chat.ToolChoice{}},
		"none":             {`"tool_choice":"none"`, chat.ToolChoice{Mode: chat.ChoiceNone}},
		"auto":             {twoTools + `,"tool_choice":"auto"`, chat.ToolChoice{Mode: chat.ChoiceAuto}},
		"required":         {twoTools + `,"tool_choice":"required"`, chat.ToolChoice{Mode: chat.ChoiceRequired}},
		"function":         {twoTools + `,"tool_choice":{"type":"function","function":{"name":"g"}}`, chat.ToolChoice{Mode: chat.ChoiceFunction, Name: "g"}},
		"allowed":          {twoTools + `,"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"required","tools":[{"type":"function","function":{"name":"g"}}]}}`, chat.ToolChoice{Mode: chat.ChoiceRequired, Allowed: []string{"g"}}},
		"other":            {twoTools + `,"tool_choice":{"type":"custom","custom":{"name":"x"}}`, chat.ToolChoice{Mode: chat.ChoiceOther, Name: "custom"}},
		"legacy none":      {`"function_call":"none"`, chat.ToolChoice{Mode: chat.ChoiceNone}},
		"legacy and tools": {twoTools + `,"function_call":"auto"`, chat.ToolChoice{Mode: chat.ChoiceAuto}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, parse(t, with(c.fields)).ToolChoice)
		})
	}
}

func TestToolFaults(t *testing.T) {
	t.Parallel()
	choose := func(choice string) string { return with(twoTools + `,"tool_choice":` + choice) }
	allow := func(allowed string) string {
		return choose(`{"type":"allowed_tools","allowed_tools":` + allowed + `}`)
	}
	const allowed = "tool_choice.allowed_tools"
	cases := map[string]struct{ body, param string }{
		"tools":               {with(`"tools":{}`), "tools"},
		"tool":                {with(`"tools":["f"]`), "tools[0]"},
		"no type":             {with(`"tools":[{"function":{"name":"f"}}]`), "tools[0].type"},
		"no function":         {with(`"tools":[{"type":"function"}]`), "tools[0].function"},
		"no name":             {with(`"tools":[{"type":"function","function":{}}]`), "tools[0].function.name"},
		"description":         {with(`"tools":[{"type":"function","function":{"name":"f","description":1}}]`), "tools[0].function.description"},
		"parameters":          {with(twoTools[:len(twoTools)-1] + `,{"type":"function","function":{"name":"f","parameters":"x"}}]`), "tools[2].function.parameters"},
		"strict":              {with(`"tools":[{"type":"function","function":{"name":"f","strict":"x"}}]`), "tools[0].function.strict"},
		"cache_control":       {with(`"tools":[{"type":"x","cache_control":1}]`), "tools[0].cache_control"},
		"too many":            {with(`"tools":[` + strings.Repeat(`{"type":"x"},`, chat.MaxTools) + `{"type":"x"}]`), "tools"},
		"function":            {with(`"functions":[{}]`), "functions[0].name"},
		"functions and tools": {with(twoTools + `,"functions":[{"name":"f"}]`), "functions"},
		"two choices":         {with(twoTools + `,"function_call":"none","tool_choice":"none"`), "function_call"},
		"parallel_tool_calls": {with(`"parallel_tool_calls":1`), "parallel_tool_calls"},
		"mode":                {choose(`"any"`), "tool_choice"},
		"choice":              {choose(`1`), "tool_choice"},
		"choice's type":       {choose(`{}`), "tool_choice.type"},
		"choice of nothing":   {choose(`{"type":"function"}`), "tool_choice.function"},
		"choice without name": {choose(`{"type":"function","function":{}}`), "tool_choice.function.name"},
		"unknown function":    {choose(`{"type":"function","function":{"name":"h"}}`), "tool_choice"},
		"required of none":    {with(`"tool_choice":"required"`), "tool_choice"},
		"function of none":    {with(`"tool_choice":{"type":"function","function":{"name":"f"}}`), "tool_choice"},
		"nothing allowed":     {allow(`{"mode":"auto","tools":[]}`), allowed + ".tools"},
		"allowed mode":        {allow(`{"mode":"none","tools":[]}`), allowed + ".mode"},
		"no allowed mode":     {allow(`{"tools":[]}`), allowed + ".mode"},
		"allowed's type":      {allow(`{"mode":"auto","tools":[{"type":"custom"}]}`), allowed + ".tools[0].type"},
		"allowed in allowed":  {allow(`{"mode":"auto","tools":[{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"f"}}]}}]}`), allowed + ".tools[0].type"},
		"unknown allowed":     {allow(`{"mode":"auto","tools":[{"type":"function","function":{"name":"h"}}]}`), "tool_choice"},
		"legacy mode":         {with(`"functions":[{"name":"f"}],"function_call":"required"`), "function_call"},
		"legacy name":         {with(`"functions":[{"name":"f"}],"function_call":{}`), "function_call.name"},
		"legacy unknown":      {with(`"functions":[{"name":"f"}],"function_call":{"name":"g"}`), "function_call"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refused(t, c.body, c.param)
		})
	}
}

func TestArgumentsAsObject(t *testing.T) {
	t.Parallel()
	for arguments, want := range map[string]chat.Raw{
		"": "{}", " \n": "{}", "{}": "{}", ` {"a": [1]} `: `{"a": [1]}`, // taken
		"[]": "", `{"a":`: "", "null": "", "{}{}": "", "plain words": "", // refused
	} {
		got, ok := (&chat.ToolCall{Arguments: arguments}).Object()
		require.Equal(t, want, got, arguments)
		require.Equal(t, want != "", ok, arguments)
	}
}
