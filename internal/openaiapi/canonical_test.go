package openaiapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func canonicalOf(t testing.TB, body string) string {
	t.Helper()
	require.True(t, Valid([]byte(body)), body)
	var out bytes.Buffer
	require.NoError(t, WriteCanonical(&out, []byte(body)))
	return out.String()
}

func TestCanonicalSame(t *testing.T) {
	t.Parallel()
	for name, pair := range map[string][2]string{
		"order":        {`{"seed":1,"messages":[{"role":"user","content":"a"}]}`, `{"messages":[{"content":"a","role":"user"}],"seed":1}`},
		"space":        {`{"seed":1,"stop":["a","b"]}`, " {\n\"seed\" : 1 ,\t\"stop\":[ \"a\" ,\"b\" ] } "},
		"numbers":      {`{"temperature":1,"top_p":10,"seed":0}`, `{"temperature":1.00,"top_p":1e+1,"seed":-0.0e9}`},
		"small number": {`{"temperature":0.001}`, `{"temperature":1E-3}`},
		"escapes":      {`{"stop":"a/\u00e9\ud83d\ude00\n\u001F\""}`, `{"st\u006fp":"\u0061\/é😀\u000A\u001f\u0022"}`},
		"left out":     {`{"stop":"a"}`, `{"model":"m","stream":true,"stream_options":{},"user":"u","safety_identifier":"s","metadata":{"a":"b"},"store":true,"service_tier":"flex","prompt_cache_key":"k","prompt_cache_retention":"24h","stop":"a"}`},
	} {
		require.Equal(t, canonicalOf(t, pair[0]), canonicalOf(t, pair[1]), name)
	}
}

func TestCanonicalDifferent(t *testing.T) {
	t.Parallel()
	forms := make(map[string]string)
	for _, body := range []string{
		`{}`, `{"seed":null}`, `{"seed":1}`, `{"seed":-1}`, `{"seed":10}`, `{"seed":1e99999999999999}`, `{"seed":1e99999999999998}`, `{"seed":0.1}`, `{"seed":"1"}`,
		`{"seed":true}`, `{"seed":[1]}`, `{"seed":[1,1]}`, `{"seed":[[1],1]}`, `{"seed":[11]}`, `{"seed":{"1":1}}`,
		`{"stop":"\ud800"}`, `{"stop":"\ud801"}`, `{"stop":"\udc00"}`, `{"stop":"\ufffd"}`, `{"stop":"\\ud800"}`, `{"stop":"\ud800\ud800\udc00"}`,
		`{"stop":"a\",\"b"}`, `{"stop":["a","b"]}`, `{"stop":["b","a"]}`, `{"stop":"\n"}`, `{"stop":"\\n"}`, `{"stop":"\u007f"}`,
		`{"stop":{"a":1,"a":2}}`, `{"stop":{"a":2,"a":1}}`, `{"messages":[{"user":"u"}]}`, `{"messages":[{"user":"v"}]}`,
		`{"response_format":{"schema":{"a":1,"b":1}}}`, `{"response_format":{"schema":{"b":1,"a":1}}}`, `{"response_format":{"schema":{"b":1,"a":1.0}}}`,
		`{"tools":[{"a":1,"b":1}]}`, `{"tools":[{"b":1,"a":1}]}`, `{"guided_json":{"b":1,"a":1}}`, `{"guided_json":{"a":1,"b":1}}`, `{"n":1}`, `{"n":2}`,
	} {
		form := canonicalOf(t, body)
		require.Empty(t, forms[form], "the same as %s", body)
		forms[form] = body
	}
}

func TestCanonicalRefuses(t *testing.T) {
	t.Parallel()
	require.ErrorIs(t, WriteCanonical(new(bytes.Buffer), []byte(`[]`)), ErrNotCanonical)
	many := "{" + strings.TrimSuffix(strings.Repeat(`"a":1,`, mostSorted+1), ",") + "}"
	require.ErrorIs(t, WriteCanonical(new(bytes.Buffer), []byte(many)), ErrNotCanonical)
	require.Contains(t, canonicalOf(t, `{"stop":`+many+`}`), `"a":1`, "an object inside stays as it is written")
	broken := errors.New("full")
	require.ErrorIs(t, WriteCanonical(failing{broken}, []byte(`{"stop":"`+strings.Repeat("x", 2*canonicalBuffer)+`"}`)), broken)
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// shuffled writes a value anew, with its members in another order and space between.
func shuffled(v any, random *rand.Rand) []byte {
	switch v := v.(type) {
	case map[string]any:
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		parts := make([][]byte, 0, len(names))
		for _, name := range names {
			quoted, _ := json.Marshal(name)
			parts = append(parts, append(append(quoted, " :\n"...), shuffled(v[name], random)...))
		}
		return append(append([]byte("{ "), bytes.Join(parts, []byte(" ,"))...), '}')
	case []any:
		var parts [][]byte
		for _, e := range v {
			parts = append(parts, shuffled(e, random))
		}
		return append(append([]byte("[ "), bytes.Join(parts, []byte("\t,"))...), ']')
	}
	text, _ := json.Marshal(v)
	return text
}

// A request in another order is the same request, and one of which anything is changed
// that counts is not.
func FuzzCanonical(f *testing.F) {
	for _, seed := range []string{
		`{"model":"m","messages":[{"role":"user","content":"hi"}],"temperature":0.5}`, `{"messages":{"a":{"b":[1,{"c":"\u00e9","d":null}]}},"seed":1e2}`,
		`{"messages":"\ud83d\ude00\\ud800","stop":[[],{}]}`, `{"":1}`, `{"messages":` + strings.Repeat("[", 90) + strings.Repeat("]", 90) + `}`,
	} {
		f.Add([]byte(seed), uint64(1))
	}
	f.Fuzz(func(t *testing.T, body []byte, seed uint64) {
		if checkBody(body) != nil {
			return
		}
		var first bytes.Buffer
		if err := WriteCanonical(&first, body); err != nil {
			require.ErrorIs(t, err, ErrNotCanonical)
			return
		}
		var again bytes.Buffer
		require.NoError(t, WriteCanonical(&again, spaced(body)))
		require.Equal(t, first.String(), again.String(), "space counts for nothing")

		decoder := json.NewDecoder(bytes.NewReader(body))
		decoder.UseNumber()
		var all map[string]any
		if decoder.Decode(&all) != nil {
			return
		}
		// What encoding/json cannot give back as it was is left to the tables.
		if bytes.Contains(body, []byte(`\`)) || duplicated(body, all) {
			return
		}
		said, there := all["messages"]
		if !there {
			return
		}
		random := rand.New(rand.NewPCG(seed, 1))
		a, b, c := shuffled(map[string]any{"messages": said, "seed": 1}, random), shuffled(map[string]any{"messages": said, "seed": 1}, random),
			shuffled(map[string]any{"messages": []any{said}, "seed": 1}, random)
		require.Equal(t, canonicalOf(t, string(a)), canonicalOf(t, string(b)))
		require.NotEqual(t, canonicalOf(t, string(a)), canonicalOf(t, string(c)))
	})
}

// spaced puts space where it means nothing.
func spaced(body []byte) []byte { return append(append([]byte(" \n"), body...), '\t') }

// duplicated reports whether a member stands twice somewhere, of which encoding/json keeps
// the last.
func duplicated(body []byte, all map[string]any) bool {
	return countMembers(rootOf(body)) != countDecoded(all)
}

func countMembers(v value) (n int) {
	it := walk(v)
	if v.isArray() {
		for e, ok := it.element(); ok; e, ok = it.element() {
			n += countMembers(e)
		}
		return n
	}
	for m, ok := it.member(); ok; m, ok = it.member() {
		n += 1 + countMembers(m.val)
	}
	return n
}

func countDecoded(v any) (n int) {
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			n += 1 + countDecoded(e)
		}
	case []any:
		for _, e := range v {
			n += countDecoded(e)
		}
	}
	return n
}
