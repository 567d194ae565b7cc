package queue

import (
	"encoding/binary"
	"errors"
	"time"
)

// errFrame marks bytes from the wire that are no frame of ours.
var errFrame = errors.New("malformed frame")

// writer appends values to a frame: unsigned numbers as varints, strings and bytes
// behind their length.
type writer struct{ b []byte }

func (w *writer) uint(v uint64)       { w.b = binary.AppendUvarint(w.b, v) }
func (w *writer) int(v int)           { w.uint(uint64(max(v, 0))) }
func (w *writer) dur(d time.Duration) { w.uint(uint64(max(d, 0))) }

func (w *writer) bool(v bool) {
	if v {
		w.b = append(w.b, 1)
	} else {
		w.b = append(w.b, 0)
	}
}

func (w *writer) str(s string) {
	w.int(len(s))
	w.b = append(w.b, s...)
}

func (w *writer) strs(list []string) {
	w.int(len(list))
	for _, s := range list {
		w.str(s)
	}
}

func (w *writer) bytes(p []byte) {
	w.int(len(p))
	w.b = append(w.b, p...)
}

// reader takes values from a frame in the order in which they were written. After
// the first fault every read returns zero and err is set; slices share the frame's
// memory.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail() {
	r.b, r.err = nil, errFrame
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

// int reads a number that fits in 31 bits, as everything here does that is counted
// by an int.
func (r *reader) int() int {
	v := r.uint()
	if v > 1<<31-1 {
		r.fail()
		return 0
	}
	return int(v)
}

func (r *reader) dur() time.Duration {
	v := r.uint()
	if v > 1<<62 {
		r.fail()
		return 0
	}
	return time.Duration(v)
}

func (r *reader) bool() bool {
	if len(r.b) == 0 {
		r.fail()
		return false
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v == 1
}

func (r *reader) bytes() []byte {
	n := r.int()
	if n > len(r.b) {
		r.fail()
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) str() string { return string(r.bytes()) }

// count reads the length of a list whose elements take at least size bytes each,
// so that a forged length cannot make the caller allocate.
func (r *reader) count(size int) int {
	n := r.int()
	if n*size > len(r.b) {
		r.fail()
		return 0
	}
	return n
}

// strs returns nil for an empty list.
func (r *reader) strs() []string {
	n := r.count(1)
	if n == 0 {
		return nil
	}
	list := make([]string, 0, n)
	for range n {
		list = append(list, r.str())
	}
	return list
}

// end reports the first fault, or bytes that are left over.
func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.fail()
	}
	return r.err
}
