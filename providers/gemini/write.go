package gemini

import (
	"strconv"

	"sluice/internal/openaiapi"
)

// writer writes JSON and sets its commas. Values from outside are valid JSON already or
// are written as strings.
type writer struct{ out []byte }

// separate writes a comma unless what comes is the first of its container.
func (w *writer) separate() {
	if len(w.out) == 0 {
		return
	}
	switch w.out[len(w.out)-1] {
	case '{', '[', ':':
	default:
		w.out = append(w.out, ',')
	}
}

func (w *writer) key(name string) {
	w.separate()
	w.out = append(w.out, '"')
	w.out = append(w.out, name...)
	w.out = append(w.out, '"', ':')
}

// open begins an object or an array.
func (w *writer) open(bracket byte) {
	w.separate()
	w.out = append(w.out, bracket)
}

func (w *writer) closes(bracket byte) { w.out = append(w.out, bracket) }

func (w *writer) text(name, s string) {
	w.key(name)
	w.out = openaiapi.AppendString(w.out, s)
}

// optional writes a text that says something.
func (w *writer) optional(name, s string) {
	if s != "" {
		w.text(name, s)
	}
}

// raw writes JSON as it stands.
func (w *writer) raw(name, json string) {
	w.key(name)
	w.out = append(w.out, json...)
}

// base64 writes data that needs no escapes.
func (w *writer) base64(name, data string) {
	w.key(name)
	w.out = append(w.out, '"')
	w.out = append(w.out, data...)
	w.out = append(w.out, '"')
}

func (w *writer) integer(name string, n int64) {
	w.key(name)
	w.out = strconv.AppendInt(w.out, n, 10)
}

func (w *writer) number(name string, f *float64) {
	if f != nil {
		w.key(name)
		w.out = strconv.AppendFloat(w.out, *f, 'g', -1, 64)
	}
}

func (w *writer) texts(name string, all []string) {
	w.key(name)
	w.open('[')
	for _, s := range all {
		w.separate()
		w.out = openaiapi.AppendString(w.out, s)
	}
	w.closes(']')
}
