package integration

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

// passing are requests that must reach the upstream as they are.
var passing = map[string]string{
	"unknown fields": "{ \"messages\" : [ {\"role\":\"user\",\"content\":\"" + canary + "\",\"x\":1} ],\n\t\"model\":\"m\", \"temperature\":1.50e0," +
		"\"x_unknown\":{\"b\":1,\"a\":[2,null]}, \"big\":123456789012345678901234567890, \"u\":\"\\u00e9\\ud83d\\ude00/\\/\" }",
	"tools": `{"model":"m","messages":[{"role":"user","content":"` + canary + `"},` +
		`{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}},{"id":"c2","type":"function","function":{"name":"g","arguments":"{}"}}]},` +
		`{"role":"tool","tool_call_id":"c1","content":"1"},{"role":"tool","tool_call_id":"c2","content":"2"}],` +
		`"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":"auto","parallel_tool_calls":true}`,
	"format": `{"model":"m","messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"name":"s","schema":{"type":"object"},"strict":true}}}`,
	"many":   `{"model":"m","messages":[{"role":"user","content":"x"}],"n":2,"logprobs":true,"top_logprobs":3,"seed":7,"logit_bias":{"50256":-100}}`,
	"image":  `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"what?"},{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo=","detail":"low"}}]}]}`,
}

// plainAnswers are what upstreams answer; each must come back as it is.
var plainAnswers = map[string]string{
	"unknown fields": "{\"choices\" : [ ],\n \"x_new\": {\"y\":[1.50,{}]}, \"id\":\"i\", \"model\":\"m-2\",\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4,\"x\":1}}\n",
	"tools": `{"id":"i","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":null,"tool_calls":[` +
		`{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}},{"id":"c2","type":"function","function":{"name":"g","arguments":"{}"}}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}`,
	"format": testkit.Completion("m", `{"a": 1}`, 3, 4),
	"many": `{"id":"i","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"a"},"logprobs":{"content":[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[]}]},"finish_reason":"stop"},` +
		`{"index":1,"message":{"role":"assistant","content":"b"},"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}`,
	"image": testkit.Completion("m", "a cat", 300, 2),
}

// chunks are streamed answers; each chunk must come back as it is.
var chunks = map[string][]string{
	"unknown fields": {
		`{ "model":"m-2", "choices":[{"index":0,"delta":{"content":"a","reasoning_content":"hm"},"x":1.50}],"y":{"z":[]} }`,
		`{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`,
	},
	"tools": {
		`{"id":"i","model":"m","choices":[{"index":0,"delta":{"role":"assistant","tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":""}}]}}]}`,
		`{"id":"i","model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\""}}]}}]}`,
		`{"id":"i","model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"c2","type":"function","function":{"name":"g","arguments":"{}"}}]}}]}`,
		`{"id":"i","model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]}}]}`,
		`{"id":"i","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}`,
	},
	"format": {
		`{"id":"i","model":"m","choices":[{"index":0,"delta":{"content":"{\"a\":1}"}}]}`,
		`{"id":"i","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`,
	},
	"many": {
		`{"id":"i","model":"m","choices":[{"index":0,"delta":{"content":"a"},"logprobs":{"content":[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[]}]}}]}`,
		`{"id":"i","model":"m","choices":[{"index":1,"delta":{"content":"b"},"logprobs":null}]}`,
		`{"id":"i","model":"m","choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}`,
		`{"id":"i","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`,
	},
	"image": {
		`{"id":"i","model":"m","choices":[{"index":0,"delta":{"content":"cat"}}]}`,
		`{"id":"i","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`,
	},
}

// TestBytesPassThrough holds requests and answers, plain and streamed, to the bytes.
func TestBytesPassThrough(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	for name, body := range passing {
		s.up.Handle(func(c *testkit.Call) { c.JSON(http.StatusOK, plainAnswers[name]) })
		a := s.chat(body, "X-Request-Id", "plain-"+name[:4])
		require.Equal(t, http.StatusOK, a.status, a.body)
		require.Equal(t, plainAnswers[name], a.body)
		require.Equal(t, "application/json", a.header.Get("Content-Type"))
		require.Equal(t, body, string(s.up.Last().Body))
		require.Equal(t, "Bearer "+upstreamKey, s.up.Last().Header.Get("Authorization"))
		require.Equal(t, "plain-"+name[:4], s.up.Last().Header.Get("X-Request-Id"))

		s.up.Handle(func(c *testkit.Call) {
			for _, chunk := range chunks[name] {
				c.Chunk(chunk)
			}
			c.Chunk(`{"id":"i","model":"m","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":6}}`)
			c.Done()
		})
		streamed := strings.Replace(body, `"model":"m"`, `"model":"m","stream":true`, 1)
		got := datas(s.stream(streamed).rest())
		require.Equal(t, append(append([]string{}, chunks[name]...), "[DONE]"), got)
		// What must change: usage is asked for. Everything else is as it came.
		require.Equal(t, `{"stream_options":{"include_usage":true},`+streamed[1:], string(s.up.Last().Body))
	}
	rows := s.rows(2 * len(passing))
	for _, r := range rows {
		require.True(t, r.Usage.Known)
		require.False(t, r.Usage.Estimated)
		if r.Stream {
			require.EqualValues(t, 6, r.Usage.CompletionTokens)
		}
	}
}

func TestUsageChunkOnRequestAlone(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	for asked, body := range map[bool]string{
		false: streamBody,
		true:  strings.Replace(streamBody, `"stream":true`, `"stream":true,"stream_options":{"include_usage":true}`, 1),
	} {
		st := s.stream(body, "X-Request-Id", "r-usage")
		events := st.rest()
		last := events[len(events)-2].data
		require.Equal(t, asked, strings.Contains(last, `"usage":{"prompt_tokens":7`), last)
		require.Equal(t, "Hello there.", s.content(events))
		if !asked {
			for _, e := range events {
				require.NotContains(t, e.data, "usage", "what was added is taken out")
			}
		} else {
			require.Equal(t, body, string(s.up.Last().Body), "nothing was to be added")
		}
	}
	for _, r := range s.rows(2) {
		require.Equal(t, inference.Usage{PromptTokens: 7, CompletionTokens: 3, Known: true}, r.Usage)
	}
}

func TestModels(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	client := s.client()
	list, err := client.Models.List(t.Context())
	require.NoError(t, err)
	var ids []string
	for _, m := range list.Data {
		require.Equal(t, provider, m.OwnedBy)
		ids = append(ids, m.ID)
	}
	require.Equal(t, []string{"m", "org/deep/m"}, ids, "globs are no names")

	for _, id := range []string{"m", "org/deep/m", "glob-7"} {
		m, err := client.Models.Get(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, id, m.ID)
	}
	a := s.do(0, http.MethodGet, "/v1/models/org/deep/m", "")
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, http.StatusNotFound, s.do(0, http.MethodGet, "/v1/models/none", "").status)
	require.Equal(t, http.StatusUnauthorized, s.do(0, http.MethodGet, "/v1/models", "", "Authorization", "").status)

	answer, err := client.Chat.Completions.New(t.Context(), ask("org/deep/m"))
	require.NoError(t, err)
	require.Equal(t, "org/deep/m", answer.Model)
	answer, err = client.Chat.Completions.New(t.Context(), ask("acme/glob-1"))
	require.NoError(t, err)
	require.Equal(t, "glob-1", answer.Model, "a model may name its provider")
	require.JSONEq(t, strings.Replace(plainBody, `"m"`, `"glob-1"`, 1), string(s.up.Last().Body))
	require.Equal(t, "acme/glob-1", s.rows(2)[1].ModelAsked)
}

func TestHealth(t *testing.T) {
	t.Parallel()
	server, db := testkit.StartNATS(t), testkit.PostgresServer(t)
	s := start(t, func(o *options) { o.natsURL, o.database, o.workers = server.URL(), db.URL(), 0 })
	a := s.do(0, http.MethodGet, "/livez", "", "Authorization", "")
	require.Equal(t, http.StatusOK, a.status)
	require.NotEmpty(t, a.header.Get("X-Request-Id"))

	s.eventually(func() bool { return s.ready(0).code == http.StatusOK }, "ready without a worker")
	r := s.ready(0)
	require.Equal(t, map[string]string{"nats": "ok", "database": "ok"}, r.Checks)
	require.Equal(t, "no worker", r.Providers[provider].Status)
	s.addWorker(s.up)
	s.awaitWorkers(1)
	require.Equal(t, "ok", s.ready(0).Providers[provider].Status)
	require.Equal(t, http.StatusOK, s.chat(plainBody).status)

	db.Stop()
	r = s.ready(0)
	require.Equal(t, http.StatusOK, r.code, "serving goes on without the database")
	require.Equal(t, "not reachable", r.Checks["database"])
	require.Equal(t, http.StatusOK, s.chat(plainBody).status)
	unknown := s.chat(plainBody, "Authorization", "Bearer "+mintUnknown())
	require.Equal(t, http.StatusServiceUnavailable, unknown.status)
	require.Equal(t, "auth_unavailable", s.fault(unknown.body).Code)
	require.NotEmpty(t, unknown.header.Get("Retry-After"))
	db.Start()
	s.eventually(func() bool { return s.ready(0).Checks["database"] == "ok" }, "the database is back")
	s.rows(2)

	require.NoError(t, server.Kill())
	s.eventually(func() bool { return s.ready(0).code == http.StatusServiceUnavailable }, "not ready without a queue")
	require.Equal(t, "not reachable", s.ready(0).Checks["nats"])
	require.Equal(t, http.StatusOK, s.do(0, http.MethodGet, "/livez", "").status)
	require.Equal(t, http.StatusOK, s.do(0, http.MethodGet, "/metrics", "").status)
	require.NoError(t, server.Start())
	s.eventually(func() bool { return s.ready(0).code == http.StatusOK }, "the queue is back")
	require.Equal(t, http.StatusOK, s.chat(plainBody).status)
	s.rows(3)

	s.doors[0].ingress.Drain()
	require.Equal(t, http.StatusServiceUnavailable, s.ready(0).code)
	var live map[string]any
	require.NoError(t, json.Unmarshal([]byte(s.do(0, http.MethodGet, "/readyz", "").body), &live))
	require.Equal(t, "unready", live["status"])
}
