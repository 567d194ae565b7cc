package integration

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
	"sluice/store"
)

func TestOfficialClient(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	client := s.client()
	answer, err := client.Chat.Completions.New(t.Context(), ask("m"))
	require.NoError(t, err)
	require.Equal(t, "Hello there.", answer.Choices[0].Message.Content)
	require.EqualValues(t, 10, answer.Usage.TotalTokens)

	params := ask("m")
	params.StreamOptions.IncludeUsage = openai.Bool(true)
	stream := client.Chat.Completions.NewStreaming(t.Context(), params)
	sum := openai.ChatCompletionAccumulator{}
	for stream.Next() {
		require.True(t, sum.AddChunk(stream.Current()))
	}
	require.NoError(t, stream.Err())
	require.Equal(t, "Hello there.", sum.Choices[0].Message.Content)
	require.EqualValues(t, 10, sum.Usage.TotalTokens)
}

// refused makes a call that must fail, and returns its error and the response's head.
func refused(t *testing.T, client openai.Client, params openai.ChatCompletionNewParams, opts ...option.RequestOption) *openai.Error {
	t.Helper()
	_, err := client.Chat.Completions.New(t.Context(), params, opts...)
	var e *openai.Error
	require.ErrorAs(t, err, &e)
	return e
}

// TestErrorsOfRequests has the official client meet every error that is decided before
// the queue.
func TestErrorsOfRequests(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.maxBody = 64 << 10 })
	narrow, _ := s.mint("narrow", func(k *store.Key) { k.Models = []string{"glob-*"} })
	raw := func(body string) option.RequestOption {
		return option.WithRequestBody("application/json", strings.NewReader(body))
	}
	cases := map[string]struct {
		opts                    []option.RequestOption
		status                  int
		code, kind, param, says string
	}{
		"no JSON":         {[]option.RequestOption{raw(`{"model":`)}, 400, "invalid_json", "invalid_request_error", "", "not valid JSON"},
		"empty body":      {[]option.RequestOption{raw(` `)}, 400, "invalid_json", "invalid_request_error", "", "empty"},
		"no object":       {[]option.RequestOption{raw(`[]`)}, 400, "invalid_request", "invalid_request_error", "", "object"},
		"bad field":       {[]option.RequestOption{option.WithJSONSet("temperature", "hot")}, 400, "invalid_request", "invalid_request_error", "temperature", "number"},
		"bad message":     {[]option.RequestOption{option.WithJSONSet("messages.0.role", 7)}, 400, "invalid_request", "invalid_request_error", "messages[0].role", "string"},
		"no model":        {[]option.RequestOption{option.WithJSONDel("model")}, 400, "invalid_request", "invalid_request_error", "model", "missing"},
		"bad timeout":     {[]option.RequestOption{option.WithHeader("X-Sluice-Timeout", "soon")}, 400, "invalid_request", "invalid_request_error", "X-Sluice-Timeout", "duration"},
		"negative":        {[]option.RequestOption{option.WithHeader("X-Sluice-Timeout", "-3s")}, 400, "invalid_request", "invalid_request_error", "X-Sluice-Timeout", "positive"},
		"bad window":      {[]option.RequestOption{option.WithHeader("X-Sluice-Resume-Window", "NaN")}, 400, "invalid_request", "invalid_request_error", "X-Sluice-Resume-Window", "duration"},
		"packed body":     {[]option.RequestOption{option.WithHeader("Content-Encoding", "gzip")}, 400, "invalid_request", "invalid_request_error", "", "Content-Encoding"},
		"wrong key":       {[]option.RequestOption{option.WithAPIKey("sk-wrong")}, 401, "invalid_api_key", "authentication_error", "", "not known"},
		"unknown key":     {[]option.RequestOption{option.WithAPIKey(mintUnknown())}, 401, "invalid_api_key", "authentication_error", "", "not known"},
		"no key":          {[]option.RequestOption{option.WithHeaderDel("Authorization")}, 401, "invalid_api_key", "authentication_error", "", "No API key"},
		"no bearer":       {[]option.RequestOption{option.WithHeader("Authorization", "Basic abc")}, 401, "invalid_api_key", "authentication_error", "", "malformed"},
		"not allowed":     {[]option.RequestOption{option.WithAPIKey(narrow)}, 403, "model_not_allowed", "permission_error", "model", "may not use"},
		"unknown model":   {[]option.RequestOption{option.WithJSONSet("model", "none")}, 404, "model_not_found", "not_found_error", "model", "not served"},
		"too large":       {[]option.RequestOption{option.WithJSONSet("x", strings.Repeat("y", 64<<10))}, 413, "request_too_large", "invalid_request_error", "", "larger than"},
		"much too large":  {[]option.RequestOption{option.WithJSONSet("x", strings.Repeat("y", 4<<20))}, 413, "request_too_large", "invalid_request_error", "", "larger than"},
		"unknown version": {[]option.RequestOption{option.WithBaseURL(s.doors[0].url + "/v9")}, 404, "not_found", "not_found_error", "", "/v1"},
	}
	for name, c := range cases {
		e := refused(t, s.client(), ask("m"), append(c.opts, option.WithHeader("X-Request-Id", "r-"+strings.ReplaceAll(name, " ", "-")))...)
		require.Equal(t, c.status, e.StatusCode, name)
		require.Equal(t, []string{c.code, c.kind, c.param}, []string{e.Code, e.Type, e.Param}, name)
		require.Contains(t, e.Message, c.says, name)
		require.Equal(t, "r-"+strings.ReplaceAll(name, " ", "-"), e.Response.Header.Get("X-Request-Id"), name)
		s.fault(`{"error":` + e.RawJSON() + `}`)
		require.Equal(t, c.status == 401, e.Response.Header.Get("Www-Authenticate") != "", name)
	}
	client := s.client()
	var e *openai.Error
	require.ErrorAs(t, client.Get(t.Context(), "chat/completions", nil, nil), &e)
	require.Equal(t, http.StatusMethodNotAllowed, e.StatusCode)
	require.Equal(t, "method_not_allowed", e.Code)
	require.ErrorAs(t, client.Post(t.Context(), "nothing", nil, nil), &e)
	require.Equal(t, http.StatusNotFound, e.StatusCode)
	require.Equal(t, "not_found", e.Code)
	require.NotEmpty(t, e.Response.Header.Get("X-Request-Id"))
	_, err := client.Models.Get(t.Context(), "none")
	require.ErrorAs(t, err, &e)
	require.Equal(t, "model_not_found", e.Code)
	require.Zero(t, s.up.Count(), "none of them was the upstream's business")
}

// TestErrorsOfUpstreams does the same for what goes wrong behind the queue, with plain
// and streamed calls alike.
func TestErrorsOfUpstreams(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.callTimeout = 300 * time.Millisecond })
	const odd = "{ \"error\": {\"message\":\"no such field\", \"type\":\"t\", \"code\":\"c\", \"param\":\"foo\", \"n\":1.50} }\n"
	leak := `{"error":{"message":"Incorrect API key provided: ` + upstreamKey + `","type":"invalid_request_error","code":"invalid_api_key"}}`
	cases := map[string]struct {
		script     func(*testkit.Call)
		header     string
		status     int
		code, kind string
	}{
		"rejected":     {func(c *testkit.Call) { c.JSON(http.StatusUnprocessableEntity, odd) }, "", 422, "c", "t"},
		"bad key":      {func(c *testkit.Call) { c.JSON(http.StatusUnauthorized, leak) }, "", 502, "upstream_auth", "upstream_error"},
		"broken":       {func(c *testkit.Call) { c.Fail(http.StatusInternalServerError, "oops") }, "", 502, "upstream_error", "upstream_error"},
		"overloaded":   {func(c *testkit.Call) { c.Fail(http.StatusServiceUnavailable, "busy") }, "", 502, "upstream_error", "upstream_error"},
		"no sense":     {func(c *testkit.Call) { c.SetHeader("Content-Type", "text/html"); c.Raw("<html>") }, "", 502, "upstream_invalid", "upstream_error"},
		"cut":          {(*testkit.Call).Cut, "", 503, "upstream_unavailable", "upstream_error"},
		"silent":       {(*testkit.Call).Hang, "", 504, "upstream_timeout", "timeout_error"},
		"deadline":     {(*testkit.Call).Hang, "100ms", 504, "deadline_exceeded", "timeout_error"},
		"told to wait": {func(c *testkit.Call) { c.SetHeader("Retry-After", "7"); c.Fail(http.StatusTooManyRequests, "slow") }, "5s", 429, "upstream_rate_limited", "rate_limit_error"},
	}
	rows := 0
	for _, name := range slices.Sorted(maps.Keys(cases)) { // "told to wait" is the last: then the key does
		c := cases[name]
		s.up.Handle(c.script)
		for _, stream := range []bool{false, true} {
			opts := []option.RequestOption{option.WithJSONSet("stream", stream), option.WithHeader("X-Request-Id", "r-1")}
			if c.header != "" {
				opts = append(opts, option.WithHeader("X-Sluice-Timeout", c.header))
			}
			e := refused(t, s.client(), ask("m"), opts...)
			rows++
			require.Equal(t, c.status, e.StatusCode, name)
			require.Equal(t, []string{c.code, c.kind}, []string{e.Code, e.Type}, name)
			require.NotContains(t, e.RawJSON(), upstreamKey)
			h := e.Response.Header
			require.Equal(t, "r-1", h.Get("X-Request-Id"))
			require.Equal(t, provider, h.Get("X-Sluice-Provider"), name)
			attempts := "1"
			if name == "told to wait" && stream {
				attempts = "0" // it waits still, and longer than the client would
			}
			if name != "deadline" { // it may pass before the worker has told that it makes the call; the ledger knows
				require.Equal(t, attempts, h.Get("X-Sluice-Attempts"), name)
			}
			require.NotEmpty(t, h.Get("X-Sluice-Queue-Ms"), name)
			switch name {
			case "rejected":
				require.Equal(t, "foo", e.Param)
				body := strings.Replace(plainBody, `"m"`, `"m","stream":`+strconv.FormatBool(stream), 1)
				require.Equal(t, odd, s.chat(body).body, "it goes back as it came")
				rows++
			case "told to wait":
				require.Equal(t, "7", h.Get("Retry-After"))
			case "broken":
				require.EqualValues(t, 500, s.fault(`{"error":` + e.RawJSON() + `}`).Details["upstream_status"])
			}
		}
	}
	calls := 0
	for _, r := range s.rows(rows) {
		require.NotEmpty(t, r.ErrorCode)
		calls += r.Attempts
	}
	require.Equal(t, rows-1, calls)
	require.Equal(t, calls, s.up.Count())
}

func TestErrorsInsideStreams(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	for name, c := range map[string]struct {
		script func(*testkit.Call)
		code   string
	}{
		"cut":    {func(c *testkit.Call) { c.Delta("a"); c.Delta("b"); c.Cut() }, "upstream_cut"},
		"error":  {func(c *testkit.Call) { c.Delta("a"); c.Delta("b"); c.Chunk(`{"error":{"message":"overloaded"}}`) }, "upstream_error"},
		"closed": {func(c *testkit.Call) { c.Delta("a"); c.Delta("b") }, "upstream_cut"},
	} {
		s.up.Handle(c.script)
		client := s.client()
		stream := client.Chat.Completions.NewStreaming(t.Context(), ask("m"))
		var text string
		for stream.Next() {
			text += stream.Current().Choices[0].Delta.Content
		}
		require.Equal(t, "ab", text, name)
		require.ErrorContains(t, stream.Err(), c.code, name)

		st := s.stream(streamBody)
		events := st.rest()
		require.Len(t, events, 3, name)
		require.Equal(t, "0-1-3", events[2].id)
		a := s.do(0, http.MethodGet, chatPath+"/"+st.job()+"/events", "", "Last-Event-ID", "0-1-3")
		require.Equal(t, http.StatusNoContent, a.status, "whoever has the error has it all")
		require.Equal(t, c.code, s.fault(events[2].data).Code, name)
		require.NotContains(t, datas(events), "[DONE]")
	}
	for _, r := range s.rows(6) {
		require.Equal(t, "failed", string(r.Outcome))
		require.EqualValues(t, 2, r.Usage.CompletionTokens, "what was delivered is counted")
		require.True(t, r.Usage.Estimated)
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	for given, keep := range map[string]bool{
		"client-1.a_b:c": true, strings.Repeat("a", 128): true,
		strings.Repeat("a", 129): false, "a b": false, "a\"b": false, "": false, "ä": false, "<script>": false,
	} {
		a := s.chat(plainBody, "X-Request-Id", given)
		require.Equal(t, http.StatusOK, a.status)
		got := a.header.Get("X-Request-Id")
		require.Equal(t, keep, got == given, "%q became %q", given, got)
		require.NotEmpty(t, got)
		require.Equal(t, got, s.up.Last().Header.Get("X-Request-Id"))
		require.Equal(t, got, s.row(got).RequestID)
		require.Equal(t, provider, a.header.Get("X-Sluice-Provider"))
		require.Equal(t, "1", a.header.Get("X-Sluice-Attempts"))
		ms, err := strconv.Atoi(a.header.Get("X-Sluice-Queue-Ms"))
		require.NoError(t, err)
		require.GreaterOrEqual(t, ms, 0)
	}
	require.NotEmpty(t, s.do(0, http.MethodGet, "/nothing", "").header.Get("X-Request-Id"))
}

func TestQueueWaitIsTold(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.concurrency, o.slots, o.keepalive = 1, 1, time.Minute })
	gate := make(chan struct{})
	s.up.Handle(func(c *testkit.Call) { c.Wait(gate); c.Reply("x") })
	answers := make(chan answer, 3)
	post := func(body string) {
		a, err := s.try(t.Context(), 0, http.MethodPost, chatPath, body)
		if err != nil {
			t.Error(err)
		}
		answers <- a
	}
	go post(plainBody)
	s.up.AwaitCount(1)
	go post(plainBody)
	go post(streamBody)
	s.eventually(func() bool { return s.metric(`sluice_queue_depth{provider="acme",state="waiting"}`) == 2 }, "two jobs wait")
	time.AfterFunc(100*time.Millisecond, func() { close(gate) })
	waited := 0
	for range 3 {
		a := <-answers
		require.Equal(t, http.StatusOK, a.status)
		ms, err := strconv.Atoi(a.header.Get("X-Sluice-Queue-Ms"))
		require.NoError(t, err)
		if ms >= 100 {
			waited++
		}
	}
	require.GreaterOrEqual(t, waited, 2)
	var queued int
	for _, r := range s.rows(3) {
		require.LessOrEqual(t, r.Queue, r.Total)
		if r.Queue >= 100*time.Millisecond {
			queued++
		}
	}
	require.GreaterOrEqual(t, queued, 2)
}

func TestQueueFull(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.concurrency, o.slots, o.maxQueued = 1, 1, 3 })
	gate := make(chan struct{})
	s.up.Handle(func(c *testkit.Call) { c.Wait(gate); c.Reply("x") })
	answers := make(chan answer, 3)
	for range 3 {
		go func() {
			a, err := s.try(t.Context(), 0, http.MethodPost, chatPath, plainBody)
			if err != nil {
				t.Error(err)
			}
			answers <- a
		}()
	}
	s.eventually(func() bool { return s.metric("sluice_in_flight") == 3 }, "three jobs are in")
	s.up.AwaitCount(1)
	for _, body := range []string{plainBody, streamBody} {
		a := s.chat(body)
		require.Equal(t, http.StatusTooManyRequests, a.status)
		after, err := strconv.Atoi(a.header.Get("Retry-After"))
		require.NoError(t, err)
		require.GreaterOrEqual(t, after, 1)
		require.Equal(t, provider, a.header.Get("X-Sluice-Provider"))
		require.Equal(t, "0", a.header.Get("X-Sluice-Attempts"))
		require.NotEmpty(t, a.header.Get("X-Sluice-Queue-Ms"))
		f := s.fault(a.body)
		require.Equal(t, "queue_full", f.Code)
		require.Equal(t, "rate_limit_error", f.Type)
	}
	e := refused(t, s.client(), ask("m"))
	require.Equal(t, http.StatusTooManyRequests, e.StatusCode)
	close(gate)
	for range 3 {
		require.Equal(t, http.StatusOK, (<-answers).status)
	}
	s.eventually(func() bool { return s.chat(plainBody).status == http.StatusOK }, "there is room again")
	require.EqualValues(t, 3, s.metric(`sluice_refused_total{provider="acme"}`))
	for _, r := range s.rows(4) {
		require.Equal(t, http.StatusOK, r.Status)
	}
}

// TestIngressFull has the bound of requests in one ingress, which comes before the
// queue's.
func TestIngressFull(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.maxInFlight = 1 })
	gate := make(chan struct{})
	s.up.Handle(func(c *testkit.Call) { c.Wait(gate); c.Reply("x") })
	done := make(chan error, 1)
	go func() {
		_, err := s.try(t.Context(), 0, http.MethodPost, chatPath, plainBody)
		done <- err
	}()
	s.up.AwaitCount(1)
	a := s.chat(plainBody)
	require.Equal(t, http.StatusTooManyRequests, a.status)
	require.Equal(t, "1", a.header.Get("Retry-After"))
	require.Equal(t, provider, a.header.Get("X-Sluice-Provider"))
	require.Equal(t, "0", a.header.Get("X-Sluice-Attempts"))
	require.Equal(t, "0", a.header.Get("X-Sluice-Queue-Ms"))
	var whole map[string]any
	require.NoError(t, json.Unmarshal([]byte(a.body), &whole))
	close(gate)
	require.NoError(t, <-done)
	s.rows(1)
}
