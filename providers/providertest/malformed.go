package providertest

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

// testLarge has an answer of 5 MB come through whole, in one piece and in several.
func testLarge(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	half := strings.Repeat("ö\\\"\n"+strings.Repeat("0123456789", 100), 5<<20/2/1000)
	r.up.Handle(func(c *testkit.Call) { s.Dialect.Answer(c, half, half) })
	resp, err := r.Generate(t.Context(), newCall("hello", false, false))
	require.NoError(t, err)
	same := decode(t, resp.Body).Choices[0].Message.Content == half+half
	require.True(t, same, "the answer is another") // a difference of 5 MB is not to be printed
	var c collector
	_, err = r.StreamGenerate(t.Context(), newCall("hello", true, false), c.emit)
	require.NoError(t, err)
	text, _ := c.text(t)
	same = text == half+half
	require.True(t, same, "the streamed answer is another")
}

// testEmpty has an answer without a choice, in the words of every format at once. Plain,
// it is an answer with nothing in it or none at all; a stream of it has no end.
func testEmpty(t *testing.T, s Subject) {
	const empty = `{"type":"message","choices":[],"candidates":[],"content":[]}`
	r := newRig(t, s, Options{})
	r.up.Handle(func(c *testkit.Call) {
		if c.Streamed() {
			c.Chunk(empty)
			return
		}
		c.JSON(http.StatusOK, empty)
	})
	resp, err := r.Generate(t.Context(), newCall("hello", false, false))
	if err != nil {
		requireError(t, r, err, inference.CodeUpstreamInvalid)
	} else {
		for _, choice := range decode(t, resp.Body).Choices {
			require.Empty(t, choice.Message.Content)
		}
	}
	_, err = r.StreamGenerate(t.Context(), newCall("hello", true, false), new(collector).emit)
	requireError(t, r, err, inference.CodeUpstreamCut)
}

// testCutEvent has the connection break in the middle of an event.
func testCutEvent(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	r.up.Handle(func(c *testkit.Call) {
		s.Dialect.Token(c, "Hello")
		c.Raw("event: message\ndata: {\"half\":")
		c.Cut()
	})
	var c collector
	_, err := r.StreamGenerate(t.Context(), newCall("hello", true, false), c.emit)
	requireError(t, r, err, inference.CodeUpstreamCut)
	text, _ := c.text(t)
	require.Equal(t, "Hello", text)
}

func testBrokenEvent(t *testing.T, s Subject) {
	for _, broken := range []string{`{"half":`, `{"a":1}}`, "\xff\xfe", "no JSON", `"text"`, `{"a":` + strings.Repeat("[", 5000)} {
		r := newRig(t, s, Options{})
		r.up.Handle(func(c *testkit.Call) {
			s.Dialect.Token(c, "Hello")
			c.Raw("data: " + broken + "\n\n")
		})
		var c collector
		_, err := r.StreamGenerate(t.Context(), newCall("hello", true, false), c.emit)
		requireError(t, r, err, inference.CodeUpstreamInvalid)
		text, _ := c.text(t)
		require.Equal(t, "Hello", text, "what came before is handed on")
	}
}

// testUnknownEvents has events between the tokens that no adapter knows. An upstream may
// learn new ones at any time.
func testUnknownEvents(t *testing.T, s Subject) {
	const unknown = ": comment\n\nid: 7\nretry: 10\nevent: novelty\ndata: {\"type\":\"novelty\",\ndata: \"novelty\":{\"x\":[1]}}\n\nevent: ping\ndata:\n\n"
	r := newRig(t, s, Options{})
	r.up.Handle(func(c *testkit.Call) {
		c.Stream()
		c.Raw(unknown)
		s.Dialect.Token(c, "Hello")
		c.Raw(unknown)
		s.Dialect.Answer(c, " there", ".")
	})
	var c collector
	_, err := r.StreamGenerate(t.Context(), newCall("hello", true, false), c.emit)
	require.NoError(t, err)
	text, _ := c.text(t)
	require.Equal(t, "Hello there.", text)
}

// testSplitCharacters has every read end in the middle of something.
func testSplitCharacters(t *testing.T, s Subject) {
	r := newRelayedRig(t, s, nil)
	r.up.Handle(func(c *testkit.Call) { s.Dialect.Answer(c, "grüße", " 🚢", " 漢字\n") })
	var c collector
	_, err := r.StreamGenerate(t.Context(), newCall("hello", true, false), c.emit)
	require.NoError(t, err)
	text, tokens := c.text(t)
	require.Equal(t, "grüße 🚢 漢字\n", text)
	require.Equal(t, 3, tokens)
	resp, err := r.Generate(t.Context(), newCall("hello", false, false))
	require.NoError(t, err)
	require.Equal(t, text, decode(t, resp.Body).Choices[0].Message.Content)
}

// testBrokenCharacters has bytes in an answer that are no characters. The rest of it
// comes through.
func testBrokenCharacters(t *testing.T, s Subject) {
	const mark = "BROKEN"
	r := newRelayedRig(t, s, corrupt(mark))
	r.up.Handle(func(c *testkit.Call) { s.Dialect.Answer(c, "caf", mark, "e") })
	var c collector
	_, err := r.StreamGenerate(t.Context(), newCall("hello", true, false), c.emit)
	require.NoError(t, err)
	streamed, _ := c.text(t)
	resp, err := r.Generate(t.Context(), newCall("hello", false, false))
	require.NoError(t, err)
	for _, text := range []string{streamed, decode(t, resp.Body).Choices[0].Message.Content} {
		require.True(t, strings.HasPrefix(text, "caf\uFFFD"), "%q", text)
		require.True(t, strings.HasSuffix(text, "e"), "%q", text)
	}
}

// testRefusal has an answer of nothing but a refusal. It is an error only where the call
// wants it to be one, and then nothing of it is handed on.
func testRefusal(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	r.up.Handle(s.Dialect.Refuse)
	call := newCall("hello", false, false)
	resp, err := r.Generate(t.Context(), call)
	require.NoError(t, err)
	require.Equal(t, "content_filter", *decode(t, resp.Body).Choices[0].FinishReason)
	call.RefusalIsError = true
	_, plainErr := r.Generate(t.Context(), call)

	call = newCall("hello", true, false)
	var open collector
	_, err = r.StreamGenerate(t.Context(), call, open.emit)
	require.NoError(t, err)
	require.Contains(t, strings.Join(open.chunks, ""), `"content_filter"`)
	call.RefusalIsError = true
	var c collector
	_, streamErr := r.StreamGenerate(t.Context(), call, c.emit)
	require.Empty(t, c.chunks)
	for _, err := range []error{plainErr, streamErr} {
		e := requireError(t, r, err, inference.CodeUpstreamRejected)
		require.Equal(t, inference.RefusalContent, e.Refusal)
		require.Equal(t, http.StatusBadRequest, e.Status)
		require.False(t, e.Retryable)
	}

	r.up.Handle(func(c *testkit.Call) { s.Dialect.Answer(c, "Hello", " there") })
	_, err = r.StreamGenerate(t.Context(), call, c.emit)
	require.NoError(t, err)
	text, _ := c.text(t)
	require.Equal(t, "Hello there", text, "other answers are as ever")
}

func testTooLong(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	r.up.Handle(s.Dialect.TooLong)
	_, plainErr := r.Generate(t.Context(), newCall("hello", false, false))
	_, streamErr := r.StreamGenerate(t.Context(), newCall("hello", true, false), new(collector).emit)
	r.up.Handle(func(c *testkit.Call) { s.Dialect.Fail(c, http.StatusBadRequest, "temperature is too high") })
	_, otherErr := r.Generate(t.Context(), newCall("hello", false, false))
	for err, want := range map[error]inference.Refusal{plainErr: inference.RefusalContext, streamErr: inference.RefusalContext, otherErr: ""} {
		e := requireError(t, r, err, inference.CodeUpstreamRejected)
		require.Equal(t, want, e.Refusal)
		require.Equal(t, http.StatusBadRequest, e.Status)
	}
}
