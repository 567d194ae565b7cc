package gemini_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/providers"
	"sluice/providers/gemini"
)

// everything is a request with all that has a counterpart upstream.
const everything = `"messages":[
	{"role":"system","content":"Be brief."},
	{"role":"user","content":[
		{"type":"text","text":"What \"is\" this?\n<b>"},
		{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo=","detail":"high"}},
		{"type":"image_url","image_url":{"url":"https://example.com/a/cat.JPG?x=1"}},
		{"type":"input_audio","input_audio":{"data":"UklGRg==","format":"wav"}},
		{"type":"file","file":{"file_data":"data:application/pdf;base64,JVBERi0=","filename":"a.pdf"}},
		{"type":"file","file":{"file_data":"https://example.com/blob","filename":"b.csv"}},
		{"type":"image_url","image_url":{"url":"https://example.com/unknown"}}
	]},
	{"role":"user","content":"And then?"},
	{"role":"assistant","content":"Let me see.","reasoning_content":"hm","tool_calls":[
		{"id":"call_a","type":"function","function":{"name":"look","arguments":"{\"at\": [1,2]}"},"extra_content":{"google":{"thought_signature":"sigA+/="}}},
		{"id":"call_b","type":"function","function":{"name":"count","arguments":""}}
	]},
	{"role":"tool","tool_call_id":"call_a","content":"{\"seen\":\"a cat\"}"},
	{"role":"tool","tool_call_id":"call_b","content":[{"type":"text","text":"three"}]},
	{"role":"user","content":"Thanks"},
	{"role":"assistant","content":"A cat.","extra_content":{"google":{"thought_signature":"sigB"}}},
	{"role":"developer","content":[{"type":"text","text":"In German.","cache_control":{"type":"ephemeral"}}]},
	{"role":"user","content":"Go on","name":""}],
	"tools":[
		{"type":"function","function":{"name":"look","description":"Looks.","parameters":{"type":"object","properties":{"at":{"type":"array"}}}}},
		{"type":"function","function":{"name":"count","parameters":{ }}}],
	"tool_choice":{"type":"function","function":{"name":"look"}},
	"response_format":{"type":"json_schema","json_schema":{"name":"out","schema":{"type":"object","$defs":{}},"strict":true}},
	"stop":["END","STOP"],"max_completion_tokens":300,"max_tokens":5,"n":2,"seed":-7,"temperature":0.5,"top_p":0.9,"top_k":40,
	"frequency_penalty":0.1,"presence_penalty":-0.2,"logprobs":true,"top_logprobs":3,"reasoning_effort":"medium",
	"user":"u-1","metadata":{"a":"b"},"store":false,"prompt_cache_key":"k","parallel_tool_calls":true,"stream_options":null`

// everythingNative was written by hand from the reference of GenerateContentRequest.
const everythingNative = `{"systemInstruction":{"parts":[{"text":"Be brief."},{"text":"In German."}]},
"contents":[
{"role":"user","parts":[
{"text":"What \"is\" this?\n<b>"},
{"inlineData":{"mimeType":"image/png","data":"iVBORw0KGgo="}},
{"fileData":{"mimeType":"image/jpeg","fileUri":"https://example.com/a/cat.JPG?x=1"}},
{"inlineData":{"mimeType":"audio/wav","data":"UklGRg=="}},
{"inlineData":{"mimeType":"application/pdf","data":"JVBERi0="}},
{"fileData":{"mimeType":"text/csv","fileUri":"https://example.com/blob"}},
{"fileData":{"fileUri":"https://example.com/unknown"}},
{"text":"And then?"}]},
{"role":"model","parts":[
{"text":"Let me see."},
{"functionCall":{"id":"call_a","name":"look","args":{"at": [1,2]}},"thoughtSignature":"sigA+/="},
{"functionCall":{"id":"call_b","name":"count","args":{}}}]},
{"role":"user","parts":[
{"functionResponse":{"id":"call_a","name":"look","response":{"seen":"a cat"}}},
{"functionResponse":{"id":"call_b","name":"count","response":{"output":"three"}}}]},
{"role":"user","parts":[{"text":"Thanks"}]},
{"role":"model","parts":[{"text":"A cat.","thoughtSignature":"sigB"}]},
{"role":"user","parts":[{"text":"Go on"}]}],
"tools":[{"functionDeclarations":[
{"name":"look","description":"Looks.","parametersJsonSchema":{"type":"object","properties":{"at":{"type":"array"}}}},
{"name":"count"}]}],
"toolConfig":{"functionCallingConfig":{"mode":"ANY","allowedFunctionNames":["look"]}},
"generationConfig":{"temperature":0.5,"topP":0.9,"topK":40,"maxOutputTokens":300,"stopSequences":["END","STOP"],
"candidateCount":2,"presencePenalty":-0.2,"frequencyPenalty":0.1,"seed":-7,"responseLogprobs":true,"logprobs":3,
"responseMimeType":"application/json","responseJsonSchema":{"type":"object","$defs":{}},
"thinkingConfig":{"thinkingLevel":"MEDIUM","includeThoughts":true}}}`

func TestRequest(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	call := chatCall(everything)
	call.TraceParent = "00-trace"
	call.Dropped = func(names []string) { require.Fail(t, "nothing is dropped", "%v", names) }
	require.Equal(t, strings.ReplaceAll(everythingNative, "\n", ""), r.sent(t, call))
	last := r.up.Last()
	require.Equal(t, "POST", last.Method)
	require.Equal(t, "/v1beta/models/gemini-3-flash:generateContent", last.Path)
	require.Empty(t, last.Query)
	require.Equal(t, "key-one", last.Header.Get("X-Goog-Api-Key"))
	require.Empty(t, last.Header.Get("Authorization"))
	require.Equal(t, "req-1", last.Header.Get("X-Request-Id"))
	require.Equal(t, "00-trace", last.Header.Get("Traceparent"))

	require.NoError(t, r.stream(t, call).err)
	require.Equal(t, "/v1beta/models/gemini-3-flash:streamGenerateContent", r.up.Last().Path)
	require.Equal(t, "alt=sse", r.up.Last().Query)
	require.Equal(t, strings.ReplaceAll(everythingNative, "\n", ""), string(r.up.Last().Body), "the same request")
}

// TestRequestParts has one thing of a request each.
func TestRequestParts(t *testing.T) {
	t.Parallel()
	const tool = `"tools":[{"type":"function","function":{"name":"f"}}]`
	const strictTool = `"tools":[{"type":"function","function":{"name":"f","strict":true}},{"type":"function","function":{"name":"g"}}]`
	const looseTools = `"tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"g"}}]`
	const hi = `{"contents":[{"role":"user","parts":[{"text":"Hi"}]}]`
	const declared = hi + `,"tools":[{"functionDeclarations":[{"name":"f"}]}]`
	const strict = hi + `,"tools":[{"functionDeclarations":[{"name":"f"},{"name":"g"}]}]`
	for name, c := range map[string]struct{ model, fields, want string }{
		"plain":        {"", ``, hi + `}`},
		"JSON mode":    {"", `"response_format":{"type":"json_object"}`, hi + `,"generationConfig":{"responseMimeType":"application/json"}}`},
		"text mode":    {"", `"response_format":{"type":"text"},"n":1,"stop":[],"logit_bias":{}`, hi + `}`},
		"huge limit":   {"", `"max_tokens":99999999999`, hi + `,"generationConfig":{"maxOutputTokens":2147483647}}`},
		"one stop":     {"", `"stop":"x"`, hi + `,"generationConfig":{"stopSequences":["x"]}}`},
		"logprobs":     {"", `"logprobs":true`, hi + `,"generationConfig":{"responseLogprobs":true}}`},
		"draw":         {"", `"modalities":["text","image"]`, hi + `,"generationConfig":{"responseModalities":["TEXT","IMAGE"]}}`},
		"write":        {"", `"modalities":["text"]`, hi + `}`},
		"auto":         {"", tool + `,"tool_choice":"auto"`, declared + `}`},
		"none":         {"", tool + `,"tool_choice":"none"`, declared + `,"toolConfig":{"functionCallingConfig":{"mode":"NONE"}}}`},
		"required":     {"", tool + `,"tool_choice":"required"`, declared + `,"toolConfig":{"functionCallingConfig":{"mode":"ANY"}}}`},
		"strict":       {"", strictTool, strict + `,"toolConfig":{"functionCallingConfig":{"mode":"VALIDATED"}}}`},
		"allowed auto": {"", looseTools + `,"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"g"}}]}}`, strict + `,"toolConfig":{"functionCallingConfig":{"mode":"VALIDATED","allowedFunctionNames":["g"]}}}`},
		"allowed any":  {"", strictTool + `,"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"required","tools":[{"type":"function","function":{"name":"g"}}]}}`, strict + `,"toolConfig":{"functionCallingConfig":{"mode":"ANY","allowedFunctionNames":["g"]}}}`},
		"legacy":       {"", `"functions":[{"name":"f"}],"function_call":{"name":"f"}`, declared + `,"toolConfig":{"functionCallingConfig":{"mode":"ANY","allowedFunctionNames":["f"]}}}`},
		"no tools":     {"", `"tools":[],"parallel_tool_calls":false`, hi + `}`},

		"effort 3":                {"gemini-3-pro", `"reasoning_effort":"high"`, hi + `,"generationConfig":{"thinkingConfig":{"thinkingLevel":"HIGH","includeThoughts":true}}}`},
		"least effort 3":          {"gemini-flash-latest", `"reasoning_effort":"minimal"`, hi + `,"generationConfig":{"thinkingConfig":{"thinkingLevel":"LOW","includeThoughts":true}}}`},
		"most effort 3":           {"", `"reasoning_effort":"max"`, hi + `,"generationConfig":{"thinkingConfig":{"thinkingLevel":"HIGH","includeThoughts":true}}}`},
		"effort 2.5":              {"gemini-2.5-flash", `"reasoning_effort":"low"`, hi + `,"generationConfig":{"thinkingConfig":{"thinkingBudget":1024,"includeThoughts":true}}}`},
		"most effort 2.5":         {"gemini-2.5-flash", `"reasoning_effort":"xhigh"`, hi + `,"generationConfig":{"thinkingConfig":{"thinkingBudget":24576,"includeThoughts":true}}}`},
		"budget":                  {"", `"thinking":{"type":"enabled","budget_tokens":2000}`, hi + `,"generationConfig":{"thinkingConfig":{"thinkingBudget":2000,"includeThoughts":true}}}`},
		"hidden":                  {"", `"reasoning":{"effort":"low","exclude":true}`, hi + `,"generationConfig":{"thinkingConfig":{"thinkingLevel":"LOW"}}}`},
		"adaptive 2.5":            {"gemini-2.5-pro", `"thinking":{"type":"adaptive"}`, hi + `,"generationConfig":{"thinkingConfig":{"thinkingBudget":-1,"includeThoughts":true}}}`},
		"adaptive 3":              {"", `"thinking":{"type":"adaptive"}`, hi + `,"generationConfig":{"thinkingConfig":{"includeThoughts":true}}}`},
		"no thinking 2.5":         {"gemini-2.5-flash", `"reasoning_effort":"none"`, hi + `,"generationConfig":{"thinkingConfig":{"thinkingBudget":0}}}`},
		"nothing but rules":       {"", `"messages":[{"role":"system","content":"Say hi"},{"role":"developer","content":"now"}]`, `{"contents":[{"role":"user","parts":[{"text":"Say hi"},{"text":"now"}]}]}`},
		"empty texts":             {"", `"messages":[{"role":"system","content":[{"type":"text","text":""}]},{"role":"user","content":[{"type":"text","text":""},{"type":"text","text":"Hi"}]},{"role":"assistant","content":""}]`, hi + `}`},
		"refusal":                 {"", `"messages":[{"role":"user","content":"Hi"},{"role":"assistant","refusal":"No."},{"role":"user","content":"Why?"}]`, `{"contents":[{"role":"user","parts":[{"text":"Hi"}]},{"role":"model","parts":[{"text":"No."}]},{"role":"user","parts":[{"text":"Why?"}]}]}`},
		"signature alone":         {"", `"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":null,"extra_content":{"google":{"thought_signature":"s"}}}]`, `{"contents":[{"role":"user","parts":[{"text":"Hi"}]},{"role":"model","parts":[{"text":"","thoughtSignature":"s"}]}]}`},
		"call from elsewhere 2.5": {"gemini-2.5-pro", `"messages":[{"role":"assistant","function_call":{"name":"f","arguments":"{}"}},{"role":"function","name":"f","content":"[1, 2]"}]`, `{"contents":[{"role":"model","parts":[{"functionCall":{"id":"function_call_0","name":"f","args":{}}}]},{"role":"user","parts":[{"functionResponse":{"id":"function_call_0","name":"f","response":{"output":[1, 2]}}}]}]}`},
		"calls from elsewhere 3":  {"", `"messages":[{"role":"assistant","tool_calls":[{"id":"a","function":{"name":"f","arguments":"{}"}},{"id":"b","function":{"name":"g","arguments":"{}"},"extra_content":{"other":1}}]},{"role":"tool","tool_call_id":"b","content":""},{"role":"tool","tool_call_id":"a","content":"{cut"}]`, `{"contents":[{"role":"model","parts":[{"functionCall":{"id":"a","name":"f","args":{}},"thoughtSignature":"skip_thought_signature_validator"},{"functionCall":{"id":"b","name":"g","args":{}}}]},{"role":"user","parts":[{"functionResponse":{"id":"b","name":"g","response":{"output":""}}},{"functionResponse":{"id":"a","name":"f","response":{"output":"{cut"}}}]}]}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			call := chatCall(c.fields)
			if c.model != "" {
				call.Model = c.model
			}
			require.Equal(t, c.want, setup(t, nil).sent(t, call))
		})
	}
}

func TestUnsupported(t *testing.T) {
	t.Parallel()
	const hi = `{"contents":[{"role":"user","parts":[{"text":"Hi"}]}]`
	said := func(parts string) string {
		return `"messages":[{"role":"user","content":[{"type":"text","text":"Hi"},` + parts + `]}]`
	}
	for name, c := range map[string]struct{ fields, param, want string }{
		"parallel calls":    {`"tools":[{"type":"function","function":{"name":"f"}}],"parallel_tool_calls":false`, "parallel_tool_calls", hi + `,"tools":[{"functionDeclarations":[{"name":"f"}]}]}`},
		"logit bias":        {`"logit_bias":{"1":2}`, "logit_bias", hi + `}`},
		"verbosity":         {`"verbosity":"low"`, "verbosity", hi + `}`},
		"search":            {`"web_search_options":{}`, "web_search_options", hi + `}`},
		"prediction":        {`"prediction":{"type":"content","content":"x"}`, "prediction", hi + `}`},
		"speech":            {`"modalities":["text","audio"]`, "modalities", hi + `}`},
		"drawn speech":      {`"modalities":["image","audio"]`, "modalities", hi + `}`},
		"unknown":           {`"tempersture":1`, "tempersture", hi + `}`},
		"wide seed":         {`"seed":2147483648`, "seed", hi + `}`},
		"no thinking":       {`"reasoning_effort":"none"`, "reasoning_effort", hi + `}`},
		"other tool":        {`"tools":[{"type":"web_search"}]`, "tools[0]", hi + `}`},
		"other choice":      {`"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":{"type":"web_search"}`, "tool_choice", hi + `,"tools":[{"functionDeclarations":[{"name":"f"}]}]}`},
		"file id":           {said(`{"type":"file","file":{"file_id":"file-1"}}`), "messages[0].content[1].file.file_id", hi + `}`},
		"audio format":      {said(`{"type":"input_audio","input_audio":{"data":"AAAA","format":"pcm16"}}`), "messages[0].content[1].input_audio.format", hi + `}`},
		"other part":        {said(`{"type":"video"}`), "messages[0].content[1]", hi + `}`},
		"name":              {`"messages":[{"role":"user","name":"planner","content":"Hi"}]`, "messages[0].name", hi + `}`},
		"rules in pictures": {`"messages":[{"role":"system","content":[{"type":"image_url","image_url":{"url":"https://e.com/a"}}]},{"role":"user","content":"Hi"}]`, "messages[0].content[0]", hi + `}`},
		"spoken answer":     {`"messages":[{"role":"user","content":"Hi"},{"role":"assistant","audio":{"id":"a"}}]`, "messages[1].audio", hi + `}`},
		"drawn answer":      {`"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":[{"type":"image_url","image_url":{"url":"https://e.com/a"}}]}]`, "messages[1].content[0]", hi + `}`},
		"broken arguments":  {`"messages":[{"role":"user","content":"Hi"},{"role":"assistant","tool_calls":[{"id":"a","function":{"name":"f","arguments":"{cut"},"extra_content":{"google":{"thought_signature":"s"}}}]}]`, "messages[1].tool_calls[0].function.arguments", hi[:len(hi)-1] + `,{"role":"model","parts":[{"functionCall":{"id":"a","name":"f","args":{}},"thoughtSignature":"s"}]}]}`},
		"other call":        {`"messages":[{"role":"user","content":"Hi"},{"role":"assistant","tool_calls":[{"id":"a","type":"custom"}]}]`, "messages[1].tool_calls[0]", hi + `}`},
		"picture as result": {`"messages":[{"role":"user","content":"Hi"},{"role":"assistant","tool_calls":[{"id":"a","function":{"name":"f","arguments":"{}"},"extra_content":{"google":{"thought_signature":"s"}}}]},{"role":"tool","tool_call_id":"a","content":[{"type":"image_url","image_url":{"url":"https://e.com/a"}}]}]`, "messages[2].content[0]", hi[:len(hi)-1] + `,{"role":"model","parts":[{"functionCall":{"id":"a","name":"f","args":{}},"thoughtSignature":"s"}]},{"role":"user","parts":[{"functionResponse":{"id":"a","name":"f","response":{"output":""}}}]}]}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			strict, lenient := setup(t, nil), setup(t, drop)
			for _, ask := range []func(providers.Call) error{
				func(call providers.Call) error { _, err := strict.Generate(t.Context(), call); return err },
				func(call providers.Call) error { return strict.stream(t, call).err },
			} {
				e := requireCode(t, ask(chatCall(c.fields)), inference.CodeInvalidRequest)
				require.Equal(t, c.param, e.Param)
				require.Contains(t, e.Message, "gemini does not support")
			}
			require.Zero(t, strict.up.Count(), "nothing is sent")

			var dropped []string
			call := chatCall(c.fields)
			call.Dropped = func(names []string) {
				require.Zero(t, lenient.up.Count(), "told before the upstream is called")
				dropped = names
			}
			require.Equal(t, c.want, lenient.sent(t, call))
			require.Equal(t, []string{c.param}, dropped)
		})
	}
}

func TestBadRequest(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	call := chatCall("")
	call.Body = []byte(`{"model":`)
	_, err := r.Generate(t.Context(), call)
	requireCode(t, err, inference.CodeInvalidJSON)
	require.Error(t, r.stream(t, call).err)
	require.Zero(t, r.up.Count())
}

func TestModelNames(t *testing.T) {
	t.Parallel()
	r := setup(t, func(o *gemini.Options) {
		o.BaseURL += "?tenant=a"
		o.ModelMap = map[string]string{"fast": "models/gemini-2.5-flash", "own": "tunedModels/mine"}
	})
	for asked, path := range map[string]string{
		"fast":          "/v1beta/models/gemini-2.5-flash:generateContent",
		"own":           "/v1beta/tunedModels/mine:generateContent",
		"x":             "/v1beta/models/x:generateContent",
		"..":            "/v1beta/models/..:generateContent",
		"a/../../b?c#d": "/v1beta/models/a/../../b?c#d:generateContent", // as one segment, unescaped by the server
		"models/y":      "/v1beta/models/y:generateContent",
	} {
		call := chatCall("")
		call.Model = asked
		r.sent(t, call)
		require.Equal(t, path, r.up.Last().Path)
		require.Equal(t, "tenant=a", r.up.Last().Query)
	}
	call := chatCall("")
	call.Model = ""
	r.sent(t, call)
	require.Equal(t, "/v1beta/models/served:generateContent", r.up.Last().Path)
	require.NoError(t, r.stream(t, call).err)
	require.Equal(t, "alt=sse&tenant=a", r.up.Last().Query)
}
