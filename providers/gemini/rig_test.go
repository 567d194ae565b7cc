package gemini_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/testkit"
	"sluice/providers"
	"sluice/providers/gemini"
	"sluice/providers/internal/chat"
	"sluice/providers/internal/upstream"
)

// rig is an adapter before a scripted upstream.
type rig struct {
	*gemini.Provider
	up *testkit.Upstream
}

func setup(t *testing.T, change func(*gemini.Options)) *rig {
	t.Helper()
	up := testkit.NewUpstream(t)
	opts := gemini.Options{Options: upstream.Options{
		Name: "gemini", BaseURL: strings.TrimSuffix(up.URL(), "/v1") + "/v1beta", Keys: []upstream.Key{{Secret: "key-one"}},
	}}
	if change != nil {
		change(&opts)
	}
	p, err := gemini.New(opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return &rig{Provider: p, up: up}
}

func drop(o *gemini.Options) { o.OnUnsupported = chat.PolicyDrop }

// answers lets the upstream answer every call with this body, as one event of a stream
// where it is asked for one.
func (r *rig) answers(body string) {
	r.up.Handle(func(c *testkit.Call) {
		if isStream(c) {
			c.Chunk(compact(body))
			return
		}
		c.JSON(http.StatusOK, body)
	})
}

// events lets the upstream stream these events.
func (r *rig) events(events ...string) {
	r.up.Handle(func(c *testkit.Call) {
		c.Stream()
		for _, e := range events {
			c.Chunk(compact(e))
		}
	})
}

func compact(body string) string { return strings.NewReplacer("\n", "", "\t", "").Replace(body) }

const model = "gemini-3-flash"

// chatCall asks for a completion; fields are further members of the request.
func chatCall(fields string) providers.Call {
	if !strings.Contains(fields, `"messages"`) {
		fields = `"messages":[{"role":"user","content":"Hi"}]` + prefixed(fields)
	}
	return providers.Call{
		Kind: inference.KindChat, Model: model, RequestID: "req-1", Body: []byte(`{"model":"served"` + prefixed(fields) + `}`),
	}
}

func prefixed(fields string) string {
	if fields == "" {
		return ""
	}
	return "," + fields
}

// sent is the body of the upstream's last request.
func (r *rig) sent(t *testing.T, call providers.Call) string {
	t.Helper()
	r.answers(event(model, "Hello", "STOP", 1))
	_, err := r.Generate(t.Context(), call)
	require.NoError(t, err)
	body := r.up.Last().Body
	require.True(t, json.Valid(body), "%s", body)
	return string(body)
}

// generate makes a plain call and checks that its answer is one.
func (r *rig) generate(t *testing.T, call providers.Call) *providers.Response {
	t.Helper()
	resp, err := r.Generate(t.Context(), call)
	require.NoError(t, err)
	c, err := openaiapi.ParseCompletion(resp.Body)
	require.NoError(t, err, "%s", resp.Body)
	require.False(t, c.Failed)
	require.Equal(t, resp.Usage, c.Usage)
	require.Equal(t, resp.Model, c.Model)
	return resp
}

// streamed is what came of a streamed call.
type streamed struct {
	chunks  []string
	batches []int
	sum     providers.Summary
	err     error
}

func (r *rig) stream(t *testing.T, call providers.Call) streamed {
	t.Helper()
	var s streamed
	var seen openaiapi.Choices
	s.sum, s.err = r.StreamGenerate(t.Context(), call, func(chunks [][]byte) error {
		s.batches = append(s.batches, len(chunks))
		for _, c := range chunks {
			var parsed openaiapi.Chunk
			require.NoError(t, openaiapi.ParseChunk(c, &parsed, &seen), "%s", c)
			require.False(t, parsed.Failed)
			s.chunks = append(s.chunks, string(c))
		}
		return nil
	})
	if s.err == nil {
		require.True(t, seen.Finished())
	}
	return s
}

// choices are the chunks' choices without the frame that each repeats.
func (s streamed) choices() []string {
	var all []string
	for _, c := range s.chunks {
		_, rest, _ := strings.Cut(c, `"choices":`)
		all = append(all, strings.TrimSuffix(rest, "}"))
	}
	return all
}

func requireCode(t *testing.T, err error, code inference.ErrorCode) *inference.Error {
	t.Helper()
	var e *inference.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, code, e.Code, "%v: %s", err, e.Message)
	return e
}
