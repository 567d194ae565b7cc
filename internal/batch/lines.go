package batch

import (
	"bytes"
	"errors"
	"io"
)

// Line is one line of a file, without its end.
type Line struct {
	Number int    // counted from 1
	Text   []byte // valid until the next call; nil for one that is too long
	End    int64  // where the next line begins
}

// TooLong reports whether the line had more bytes than are taken.
func (l Line) TooLong() bool { return l.Text == nil }

// LineReader reads lines in bounded memory. Lines of white space alone are passed over,
// but counted.
type LineReader struct {
	from   io.Reader
	most   int
	number int
	offset int64 // of the first byte in buf

	buf     []byte
	scanned int   // bytes of buf that hold no end of line
	ended   bool  // nothing comes behind buf
	err     error // other than the end
}

// firstLine is the memory that a reader begins with; it grows with the lines.
const firstLine = 64 << 10

// NewLineReader returns a reader of lines of at most so many bytes. What is read begins at
// the offset of the file, behind that number of lines.
func NewLineReader(from io.Reader, most int, offset int64, number int) *LineReader {
	return &LineReader{from: from, most: most, offset: offset, number: number, buf: make([]byte, 0, min(firstLine, most+2))}
}

// Next returns the next line, io.EOF behind the last one, or what the reader's source
// answered.
func (r *LineReader) Next() (Line, error) {
	for {
		line, err := r.next()
		if err != nil || line.TooLong() || len(bytes.TrimSpace(line.Text)) > 0 {
			return line, err
		}
	}
}

func (r *LineReader) next() (Line, error) {
	for {
		if i := bytes.IndexByte(r.buf[r.scanned:], '\n'); i >= 0 {
			return r.take(r.scanned+i, 1), nil
		}
		r.scanned = len(r.buf)
		switch {
		case r.err != nil:
			return Line{}, r.err
		case r.ended && len(r.buf) == 0:
			return Line{}, io.EOF
		case r.ended:
			return r.take(len(r.buf), 0), nil
		case len(r.buf) > r.most+1: // one more may be the line's carriage return
			return r.skip()
		}
		r.fill()
	}
}

// take cuts a line of n bytes and its end off the buffer.
func (r *LineReader) take(n, end int) Line {
	text := r.buf[:n]
	r.buf, r.scanned = r.buf[n+end:], 0
	r.number++
	r.offset += int64(n + end)
	text = bytes.TrimSuffix(text, []byte("\r"))
	if len(text) > r.most {
		text = nil
	}
	return Line{r.number, text, r.offset}
}

// skip passes over the rest of a line that is too long.
func (r *LineReader) skip() (Line, error) {
	for {
		i := bytes.IndexByte(r.buf, '\n')
		if i >= 0 {
			r.buf, r.offset = r.buf[i+1:], r.offset+int64(i+1)
			break
		}
		r.offset += int64(len(r.buf))
		r.buf = r.buf[:0]
		if r.err != nil {
			return Line{}, r.err
		}
		if r.ended {
			break
		}
		r.fill()
	}
	r.number++
	r.scanned = 0
	return Line{Number: r.number, End: r.offset}, nil
}

// fill reads more. Room is made by moving what there is to a buffer's front, or by a
// buffer twice as large; what was cut off before is not kept.
func (r *LineReader) fill() {
	if len(r.buf) == cap(r.buf) {
		size := max(min(2*len(r.buf), r.most+2), min(firstLine, r.most+2))
		r.buf = append(make([]byte, 0, size), r.buf...)
	}
	n, err := r.from.Read(r.buf[len(r.buf):cap(r.buf)])
	r.buf = r.buf[:len(r.buf)+n]
	switch {
	case errors.Is(err, io.EOF):
		r.ended = true
	case err != nil:
		r.err = err
	}
}
