package openaiapi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
)

// ErrEventTooLarge says that an event's data exceeds the reader's bound.
var ErrEventTooLarge = errors.New("server-sent event too large")

const (
	// readSize is the buffer that every open stream holds; events beyond it let it grow.
	readSize = 4096

	// maxEmptyReads is how often a source may return nothing before it counts as broken.
	maxEmptyReads = 100
)

// Event is one server-sent event.
type Event struct {
	Name string // empty for an ordinary message
	ID   string // the last id that the stream gave, also when another event gave it
	Data []byte
}

// Reader reads server-sent events as the WHATWG HTML standard parses them
// (section 9.2.6): lines end in CR, LF or CRLF, one byte order mark is skipped,
// comments are ignored, data fields are joined by line feeds, and an event that the
// stream's end cuts off is dropped. It is for one goroutine.
type Reader struct {
	src io.Reader
	max int

	buf  []byte
	line int // where the line that is being read begins
	scan int // the line has no end before this
	end  int // buf[:end] has been read

	// The pending event. Its data lies joined in buf[data:dataEnd], which always
	// fits, because what the fields' names took up is free again.
	data, dataEnd int
	hasData       bool
	name          string

	event  Event
	ready  bool // event is complete and not yet taken
	id     string
	begun  bool // the byte order mark is behind us
	skipLF bool // the last line ended in CR: a line feed that follows belongs to it
	err    error
}

// NewReader returns a reader of src. An event with more than maxEventBytes of data
// ends the stream with ErrEventTooLarge.
func NewReader(src io.Reader, maxEventBytes int) *Reader {
	return &Reader{src: src, max: max(maxEventBytes, 1), buf: make([]byte, readSize)}
}

// Next returns the next event, waiting for the source if need be; io.EOF after the
// last. The event's data may be changed by the caller. It is valid until a call of
// Next that has to read from the source: as long as Buffered says true before each
// call, the data of earlier events stays where it is.
func (r *Reader) Next() (Event, error) {
	for !r.parse() {
		if r.err != nil {
			return Event{}, r.err
		}
		r.fill()
	}
	r.ready = false
	return r.event, nil
}

// Buffered reports whether Next will return an event without reading from the source.
func (r *Reader) Buffered() bool { return r.parse() }

// parse takes complete lines from the buffer until an event is ready.
func (r *Reader) parse() bool {
	for !r.ready {
		if !r.begun && !r.skipMark() {
			return false
		}
		if r.skipLF && r.line < r.end {
			r.skipLF = false
			if r.buf[r.line] == '\n' {
				r.line++
				r.scan = max(r.scan, r.line)
			}
		}
		i := lineEnd(r.buf[:r.end], r.scan)
		if i < 0 {
			r.scan = r.end
			return false
		}
		start := r.line
		r.skipLF = r.buf[i] == '\r'
		r.line, r.scan = i+1, i+1
		r.take(start, i)
	}
	return true
}

// skipMark skips the byte order mark. It reports false while it cannot tell.
func (r *Reader) skipMark() bool {
	const mark = "\xEF\xBB\xBF"
	got := r.buf[r.line:r.end]
	if len(got) < len(mark) && string(got) == mark[:len(got)] {
		return false
	}
	r.begun = true
	if string(got[:min(len(got), len(mark))]) == mark {
		r.line += len(mark)
		r.scan = r.line
	}
	return true
}

// lineEnd returns the offset of the first CR or LF at or after pos, or -1.
func lineEnd(data []byte, pos int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for pos+8 <= len(data) {
		x := binary.LittleEndian.Uint64(data[pos:])
		lf := x ^ ones*'\n'
		cr := x ^ ones*'\r'
		if hit := ((lf-ones)&^lf | (cr-ones)&^cr) & highs; hit != 0 {
			return pos + bits.TrailingZeros64(hit)/8
		}
		pos += 8
	}
	for ; pos < len(data); pos++ {
		if data[pos] == '\n' || data[pos] == '\r' {
			return pos
		}
	}
	return -1
}

// take acts upon the line buf[start:end].
func (r *Reader) take(start, end int) {
	line := r.buf[start:end]
	if len(line) == 0 {
		r.dispatch()
		return
	}
	field, val, _ := bytes.Cut(line, []byte{':'})
	val = bytes.TrimPrefix(val, []byte{' '})
	switch string(field) {
	case "data":
		r.addData(end-len(val), end)
	case "event":
		if r.name = r.event.Name; string(val) != r.name { // most often the same again
			r.name = string(val)
		}
	case "id":
		if string(val) != r.id && bytes.IndexByte(val, 0) < 0 {
			r.id = string(val)
		}
	}
}

func (r *Reader) addData(start, end int) {
	if r.hasData {
		r.buf[r.dataEnd] = '\n'
		r.dataEnd += 1 + copy(r.buf[r.dataEnd+1:], r.buf[start:end])
	} else {
		r.data, r.dataEnd, r.hasData = start, end, true
	}
	if r.dataEnd-r.data > r.max {
		r.tooLarge()
	}
}

func (r *Reader) tooLarge() {
	r.err = ErrEventTooLarge
	r.hasData = false
	r.line, r.scan = r.end, r.end
}

func (r *Reader) dispatch() {
	if r.hasData {
		r.event = Event{Name: r.name, ID: r.id, Data: r.buf[r.data:r.dataEnd:r.dataEnd]}
		r.ready = true
	}
	r.hasData = false
	r.name = ""
}

// fill makes room and reads once from the source.
func (r *Reader) fill() {
	if !r.makeRoom() {
		r.tooLarge()
		return
	}
	for range maxEmptyReads {
		n, err := r.src.Read(r.buf[r.end:])
		r.end += n
		if err != nil {
			r.err = err
		}
		if n > 0 || err != nil {
			return
		}
	}
	r.err = io.ErrNoProgress
}

// makeRoom moves what is still needed, the pending data and the unfinished line, to
// the front of the buffer, and lets the buffer grow when that fills it. It reports
// false when that is more than the bound allows.
func (r *Reader) makeRoom() bool {
	held := 0
	if r.hasData {
		held = copy(r.buf, r.buf[r.data:r.dataEnd])
		r.data, r.dataEnd = 0, held
	}
	rest := copy(r.buf[held:], r.buf[r.line:r.end])
	r.scan += held - r.line
	r.line, r.end = held, held+rest
	if r.end < len(r.buf) {
		return true
	}
	limit := r.max + readSize // room for the fields' names
	if len(r.buf) >= limit {
		return false
	}
	grown := make([]byte, min(2*len(r.buf), limit))
	copy(grown, r.buf[:r.end])
	r.buf = grown
	return true
}
