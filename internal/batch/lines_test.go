package batch

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// all reads every line, and checks that those too long are told as such.
func all(t *testing.T, r *LineReader) (lines []Line) {
	t.Helper()
	for {
		l, err := r.Next()
		if errors.Is(err, io.EOF) {
			return lines
		}
		require.NoError(t, err)
		if l.Text != nil {
			l.Text = bytes.Clone(l.Text)
		}
		lines = append(lines, l)
	}
}

func TestLines(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text string
		most int
		want []Line
	}{
		"nothing":             {"", 9, nil},
		"white space":         {"\n \t\r\n\n", 9, nil},
		"ends of all ways":    {"a\nb\r\nc", 9, []Line{{1, []byte("a"), 2}, {2, []byte("b"), 5}, {3, []byte("c"), 6}}},
		"a hollow line":       {"a\n\nb\n", 9, []Line{{1, []byte("a"), 2}, {3, []byte("b"), 5}}},
		"just short":          {"abc\r\nabc\n", 3, []Line{{1, []byte("abc"), 5}, {2, []byte("abc"), 9}}},
		"too long":            {"abcd\nx\nabcdefghijklmnop\ny", 3, []Line{{1, nil, 5}, {2, []byte("x"), 7}, {3, nil, 24}, {4, []byte("y"), 25}}},
		"too long to the end": {"x\nabcdefgh", 3, []Line{{1, []byte("x"), 2}, {2, nil, 10}}},
		"blanks too long":     {"        \nx", 3, []Line{{1, nil, 9}, {2, []byte("x"), 10}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, all(t, NewLineReader(strings.NewReader(c.text), c.most, 0, 0)))
			require.Equal(t, c.want, all(t, NewLineReader(iotest.OneByteReader(strings.NewReader(c.text)), c.most, 0, 0)))
		})
	}
}

func TestReadingGoesOn(t *testing.T) {
	t.Parallel()
	text := "one\n\ntwo\r\nthree"
	whole := all(t, NewLineReader(strings.NewReader(text), 10, 0, 0))
	for i, l := range whole {
		rest := all(t, NewLineReader(strings.NewReader(text[l.End:]), 10, l.End, l.Number))
		require.Equal(t, whole, append(append([]Line{}, whole[:i+1]...), rest...))
	}
}

func TestAReadersErrorIsTold(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, most := range []int{1, 100} { // in the middle of a line that is too long, too
		r := NewLineReader(io.MultiReader(strings.NewReader("a\nbcdef"), iotest.ErrReader(broken)), most, 0, 0)
		l, err := r.Next()
		require.NoError(t, err)
		require.Equal(t, "a", string(l.Text))
		_, err = r.Next()
		require.ErrorIs(t, err, broken, "what was read of the line is no line")
	}
}

// endless gives the same byte for ever.
type endless struct{ left int }

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), e.left)
	for i := range n {
		p[i] = 'x'
	}
	e.left -= n
	return n, nil
}

func TestALineTooLongTakesNoMemory(t *testing.T) {
	t.Parallel()
	r := NewLineReader(&endless{256 << 20}, 1000, 0, 0)
	l, err := r.Next()
	require.NoError(t, err)
	require.True(t, l.TooLong())
	require.EqualValues(t, 256<<20, l.End)
	require.Less(t, cap(r.buf), 64<<10)
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb\r\n\nccccccccccc\n"), 5)
	f.Fuzz(func(t *testing.T, text []byte, most int) {
		most = 1 + max(most, -most)%64
		var want []Line
		offset := 0
		for number := 1; offset < len(text); number++ {
			line, end := text[offset:], len(text)
			if i := bytes.IndexByte(line, '\n'); i >= 0 {
				line, end = line[:i], offset+i+1
			}
			line, offset = bytes.TrimSuffix(line, []byte("\r")), end
			switch {
			case len(line) > most:
				want = append(want, Line{number, nil, int64(end)})
			case len(bytes.TrimSpace(line)) > 0:
				want = append(want, Line{number, line, int64(end)})
			}
		}
		got := all(t, NewLineReader(iotest.HalfReader(bytes.NewReader(text)), most, 0, 0))
		require.Len(t, got, len(want))
		for i := range want {
			require.Equal(t, want[i].Number, got[i].Number)
			require.Equal(t, want[i].End, got[i].End)
			require.Equal(t, want[i].Text == nil, got[i].Text == nil)
			require.Equal(t, string(want[i].Text), string(got[i].Text))
		}
	})
}
