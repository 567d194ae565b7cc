package openaiapi_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"sluice/internal/openaiapi"
)

type event struct{ name, id, data string }

func readAll(r *openaiapi.Reader) ([]event, error) {
	var all []event
	for {
		e, err := r.Next()
		if err != nil {
			return all, err
		}
		all = append(all, event{e.Name, e.ID, string(e.Data)})
	}
}

func TestReaderParses(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		stream string
		want   []event
	}{
		"LF":              {"data: a\n\ndata: b\n\n", []event{{data: "a"}, {data: "b"}}},
		"CRLF":            {"data: a\r\n\r\ndata: b\r\n\r\n", []event{{data: "a"}, {data: "b"}}},
		"CRLF in events":  {"data: a\r\ndata: b\r\n\r\nid: 1\r\ndata: c\r\n\r\n", []event{{data: "a\nb"}, {id: "1", data: "c"}}},
		"CR":              {"data: a\r\rdata: b\r\r", []event{{data: "a"}, {data: "b"}}},
		"mixed":           {"data: a\r\n\ndata: b\n\r\ndata: c\r\n\r", []event{{data: "a"}, {data: "b"}, {data: "c"}}},
		"mark":            {"\xEF\xBB\xBFdata: a\n\n", []event{{data: "a"}}},
		"mark in middle":  {"data: a\n\n\xEF\xBB\xBFdata: b\n\n", []event{{data: "a"}}},
		"no space":        {"data:a\n\ndata:  b\n\n", []event{{data: "a"}, {data: " b"}}},
		"comments":        {": hello\n\n:\ndata: a\n: x\n\n", []event{{data: "a"}}},
		"several lines":   {"data: a\ndata: b\ndata:\ndata: d\n\n", []event{{data: "a\nb\n\nd"}}},
		"between":         {"data: a\nfoo: x\n: c\ndata: b\n\n", []event{{data: "a\nb"}}},
		"field alone":     {"data\n\n", []event{{data: ""}}},
		"empty data":      {"data:\n\n", []event{{data: ""}}},
		"twice empty":     {"data\ndata\n\n", []event{{data: "\n"}}},
		"no data":         {"event: x\n\ndata: a\n\n", []event{{data: "a"}}},
		"name":            {"event: x\ndata: a\n\nevent: x\ndata: b\n\ndata: c\n\n", []event{{name: "x", data: "a"}, {name: "x", data: "b"}, {data: "c"}}},
		"id":              {"id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n", []event{{id: "1", data: "a"}, {id: "1", data: "b"}, {data: "c"}}},
		"id with NUL":     {"id: 1\ndata: a\n\nid: 2\x00\ndata: b\n\n", []event{{id: "1", data: "a"}, {id: "1", data: "b"}}},
		"unknown field":   {"date: x\ndata: a\n\n", []event{{data: "a"}}},
		"cut":             {"data: a\n\ndata: b\n", []event{{data: "a"}}},
		"cut in mark":     {"\xEF\xBB", nil},
		"colon in data":   {"data: a: b\n\n", []event{{data: "a: b"}}},
		"nothing":         {"", nil},
		"only line feeds": {"\n\n\r\n", nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for way, src := range map[string]io.Reader{
				"at once":     strings.NewReader(c.stream),
				"bytewise":    iotest.OneByteReader(strings.NewReader(c.stream)),
				"data+EOF":    iotest.DataErrReader(strings.NewReader(c.stream)),
				"half reads":  iotest.HalfReader(strings.NewReader(c.stream)),
				"from behind": io.MultiReader(strings.NewReader(c.stream[:len(c.stream)/2]), strings.NewReader(c.stream[len(c.stream)/2:])),
			} {
				got, err := readAll(openaiapi.NewReader(src, 1<<20))
				require.ErrorIs(t, err, io.EOF, way)
				require.Equal(t, c.want, got, way)
			}
		})
	}
}

func TestReaderBoundsEvents(t *testing.T) {
	t.Parallel()
	for _, size := range []int{10, 5000, 100_000} {
		fits := "data: " + strings.Repeat("x", size) + "\n\n"
		got, err := readAll(openaiapi.NewReader(strings.NewReader(fits), size))
		require.ErrorIs(t, err, io.EOF)
		require.Len(t, got, 1)
		require.Len(t, got[0].data, size)

		for name, stream := range map[string]string{
			"one line": "data: a\n\ndata: " + strings.Repeat("x", size+1) + "\n\ndata: b\n\n",
			"endless":  "data: a\n\ndata: " + strings.Repeat("x", 3*size+10_000),
			"lines":    "data: a\n\n" + strings.Repeat("data: x\n", size) + "\n",
			"a name":   "data: a\n\nevent: " + strings.Repeat("x", 3*size+10_000),
		} {
			got, err = readAll(openaiapi.NewReader(strings.NewReader(stream), size))
			require.ErrorIs(t, err, openaiapi.ErrEventTooLarge, name)
			require.Equal(t, []event{{data: "a"}}, got, name)
		}
	}
	comments := strings.Repeat(": "+strings.Repeat("x", 100)+"\n", 10_000) + "data: a\n\n"
	got, err := readAll(openaiapi.NewReader(strings.NewReader(comments), 10))
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, []event{{data: "a"}}, got, "comments do not count")
}

func TestReaderKeepsEventsThatArrivedTogether(t *testing.T) {
	t.Parallel()
	src, feed := io.Pipe()
	go func() {
		_, _ = feed.Write([]byte("data: a\ndata: 2\n\ndata: b\n\n: x\n\ndata: c\n\ndata: d"))
		_, _ = feed.Write([]byte("\n\n"))
		_ = feed.CloseWithError(errors.New("gone"))
	}()
	r := openaiapi.NewReader(src, 100)
	require.False(t, r.Buffered())
	var together [][]byte
	for {
		e, err := r.Next()
		require.NoError(t, err)
		together = append(together, e.Data)
		if !r.Buffered() {
			break
		}
	}
	require.Equal(t, "a\n2|b|c", string(bytes.Join(together, []byte("|"))))
	e, err := r.Next()
	require.NoError(t, err)
	require.Equal(t, "d", string(e.Data))
	_, err = r.Next()
	require.EqualError(t, err, "gone")
	_, err = r.Next()
	require.EqualError(t, err, "gone", "an error stays")
}

func TestReaderGivesUpOnABrokenSource(t *testing.T) {
	t.Parallel()
	_, err := openaiapi.NewReader(stuck{}, 100).Next()
	require.ErrorIs(t, err, io.ErrNoProgress)
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

func TestAppendFrames(t *testing.T) {
	t.Parallel()
	require.Equal(t, "id: e-1\ndata: {}\n\n", string(openaiapi.AppendEvent(nil, "e-1", []byte("{}"))))
	require.Equal(t, "data: a\ndata: b\ndata: \ndata: c\ndata: \n\n", string(openaiapi.AppendEvent(nil, "", []byte("a\nb\r\n\rc\n"))))
	require.Equal(t, "data: x\n\n", string(openaiapi.AppendEvent(nil, "1\ndata: y", []byte("x"))), "an id cannot smuggle fields")
	require.Equal(t, ": keep\n: alive\n\n", string(openaiapi.AppendComment(nil, "keep\nalive")))
}

func FuzzSSERoundTrip(f *testing.F) {
	f.Add("7", []byte("a\nb"), []byte(`{"x":1}`), 3)
	f.Add("", []byte(""), []byte("\r\n\r"), 1)
	f.Fuzz(func(t *testing.T, id string, one, two []byte, step int) {
		stream := openaiapi.AppendComment(nil, string(two))
		stream = openaiapi.AppendEvent(stream, id, one)
		stream = openaiapi.AppendEvent(stream, "", two)
		if strings.ContainsAny(id, "\r\n\x00") {
			id = ""
		}
		lines := strings.NewReplacer("\r\n", "\n", "\r", "\n")
		want := []event{{id: id, data: lines.Replace(string(one))}, {id: id, data: lines.Replace(string(two))}}
		got, err := readAll(openaiapi.NewReader(&stepReader{stream, max(1, step)}, 1<<20))
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, want, got)
	})
}

// FuzzReader feeds arbitrary bytes: how they are cut into reads must not matter.
func FuzzReader(f *testing.F) {
	f.Add([]byte("\xEF\xBB\xBFid: 1\r\ndata: a\rdata: b\n\nevent: x\ndata\n\n"), 2)
	f.Fuzz(func(t *testing.T, stream []byte, step int) {
		whole, err := readAll(openaiapi.NewReader(bytes.NewReader(stream), 64))
		pieces, err2 := readAll(openaiapi.NewReader(&stepReader{stream, max(1, step)}, 64))
		require.Equal(t, whole, pieces)
		require.Equal(t, err, err2)
		for _, e := range whole {
			require.LessOrEqual(t, len(e.data), 64)
		}
	})
}

// stepReader hands out its bytes so many at a time.
type stepReader struct {
	rest []byte
	step int
}

func (s *stepReader) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.rest[:min(s.step, len(s.rest))])
	s.rest = s.rest[n:]
	return n, nil
}

func BenchmarkReader(b *testing.B) {
	frame := openaiapi.AppendEvent(nil, "", []byte(`{"id":"chatcmpl-123456789012345678901234","object":"chat.completion.chunk","created":1700000000,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}],"usage":null}`))
	r := openaiapi.NewReader(&endless{frame: frame}, 1<<20)
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Next(); err != nil {
			b.Fatal(err)
		}
	}
}

type endless struct {
	frame []byte
	at    int
}

func (e *endless) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		c := copy(p[n:], e.frame[e.at:])
		n += c
		e.at = (e.at + c) % len(e.frame)
	}
	return n, nil
}
