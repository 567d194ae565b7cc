// Package strictjson reads JSON objects that hold nothing but what is known, and says where
// one is at fault. It knows Go's types alone, and none of what is read.
package strictjson

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// FieldError is what is wrong with an object, and where.
type FieldError struct {
	Field   string // as in limits.models[0].queued; empty: the object itself
	Problem string // a sentence
}

func (e *FieldError) Error() string { return e.Problem }

// Wrapper is a type that reads another one's JSON, or null: it tells the two apart.
type Wrapper interface{ Inner() reflect.Type }

// Decode reads a JSON object into a struct. It may hold nothing that is not known, letter
// for letter: whoever writes it must not get something else than they mean. So it may not
// hold null either, which encoding/json takes for everything and does nothing about, but
// where a Wrapper reads it. The error is a *FieldError, or one of encoding/json for what is
// no JSON. A type that reads itself says what is wrong as something that the field is: "is
// no amount of money".
func Decode(text []byte, into any) error {
	var raw json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		return err
	}
	target := reflect.ValueOf(into).Elem()
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil || members == nil {
		return &FieldError{Problem: "A JSON object is expected."}
	}
	if wrong := foreign(raw, target.Type(), ""); wrong != nil {
		return wrong
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		field, _ := memberOf(target.Type(), name) // which is known by now
		if err := json.Unmarshal(members[name], target.FieldByIndex(field.Index).Addr().Interface()); err != nil {
			if wrong := wrongMember(members[name], field.Type, name); wrong != nil {
				return wrong
			}
			return problem(name, "cannot be read: %s", err)
		}
	}
	return nil
}

// nameMost is how much of a name that somebody else has chosen is repeated.
const nameMost = 200

func unknown(at string) *FieldError {
	return &FieldError{at, fmt.Sprintf("There is no field %.*q.", nameMost, at)}
}

func problem(at, format string, args ...any) *FieldError {
	return &FieldError{at, fmt.Sprintf("%.*q %s.", nameMost, at, fmt.Sprintf(format, args...))}
}

// foreign returns the first member in the JSON that a value of the type has not, or the first
// null that it does not take, or nil. What does not fit the type otherwise is found when it
// is decoded.
func foreign(raw json.RawMessage, t reflect.Type, at string) (wrong *FieldError) {
	if string(raw) == null {
		if wraps(t) {
			return nil
		}
		return problem(at, "must not be null")
	}
	t, itself := readAs(t)
	if itself {
		return nil
	}
	_ = inside(raw, t, at, func(raw json.RawMessage, t reflect.Type, at string) bool {
		if t == nil {
			wrong = unknown(at)
		} else {
			wrong = foreign(raw, t, at)
		}
		return wrong == nil
	})
	return wrong
}

const null = "null"

// wrongMember returns the first value in the JSON that the type cannot take, or nil.
func wrongMember(raw json.RawMessage, t reflect.Type, at string) (wrong *FieldError) {
	if string(raw) == null {
		return nil // where it may not be it was refused before
	}
	t, itself := readAs(t)
	if !itself && inside(raw, t, at, func(raw json.RawMessage, t reflect.Type, at string) bool {
		if t != nil {
			wrong = wrongMember(raw, t, at)
		}
		return wrong == nil
	}) {
		return wrong
	}
	err := json.Unmarshal(raw, reflect.New(t).Interface())
	switch {
	case err == nil:
		return nil
	case t == reflect.TypeFor[time.Time]():
		return problem(at, "must be a time as RFC 3339 has it, such as %q", "2030-01-02T15:04:05Z")
	case itself:
		return problem(at, "%s", err)
	}
	return problem(at, "must not be a JSON %s", kindOf(raw, t))
}

// kindOf says what the JSON is that does not fit.
func kindOf(raw json.RawMessage, t reflect.Type) string {
	switch raw[0] {
	case '{':
		return "object"
	case '[':
		return "array"
	case '"':
		return "string"
	case 't', 'f':
		return "bool"
	}
	if k := t.Kind(); k >= reflect.Int && k <= reflect.Uint64 {
		return "number that is not whole, or too large"
	}
	return "number"
}

// readAs returns the type whose JSON a value of the type is read from, and whether it reads
// that itself.
func readAs(t reflect.Type) (as reflect.Type, itself bool) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if w, ok := wrapper(t); ok {
		return readAs(w.Inner())
	}
	return t, reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]())
}

func wrapper(t reflect.Type) (Wrapper, bool) { return reflect.TypeAssert[Wrapper](reflect.Zero(t)) }

func wraps(t reflect.Type) bool {
	_, ok := wrapper(t)
	return ok
}

// inside shows the values that the JSON of the type holds, with their type and where they
// are, until one is not to be followed by more; the type of an unknown one is nil. It
// reports false for what holds none, or is not of the type's form.
func inside(raw json.RawMessage, t reflect.Type, at string, show func(raw json.RawMessage, t reflect.Type, at string) bool) bool {
	switch t.Kind() {
	case reflect.Slice:
		var elements []json.RawMessage
		if json.Unmarshal(raw, &elements) != nil {
			return false
		}
		for i, e := range elements {
			if !show(e, t.Elem(), fmt.Sprintf("%s[%d]", at, i)) {
				return true
			}
		}
		return true
	case reflect.Struct, reflect.Map:
		var members map[string]json.RawMessage
		if json.Unmarshal(raw, &members) != nil {
			return false
		}
		for _, name := range slices.Sorted(maps.Keys(members)) {
			if !show(members[name], typeOf(t, name), strings.TrimPrefix(at+"."+name, ".")) {
				return true
			}
		}
		return true
	}
	return false
}

// typeOf returns the type of a struct's or map's member, or nil if it has none of that name.
func typeOf(t reflect.Type, name string) reflect.Type {
	if t.Kind() == reflect.Map {
		return t.Elem()
	}
	if field, known := memberOf(t, name); known {
		return field.Type
	}
	return nil
}

// memberOf returns the struct's field that has the name in JSON, letter for letter. One whose
// tag is "-" has none.
func memberOf(t reflect.Type, name string) (reflect.StructField, bool) {
	for field := range t.Fields() {
		tag := field.Tag.Get("json")
		if its, _, _ := strings.Cut(tag, ","); its == name && name != "" && tag != "-" {
			return field, true
		}
	}
	return reflect.StructField{}, false
}
