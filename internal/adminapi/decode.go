package adminapi

import (
	"encoding/json"
	"reflect"

	"sluice/internal/strictjson"
)

// Field is a member of an object that may be left out, and may be null, which is not the
// same. What has another type must not be null.
type Field[T any] struct {
	Given bool
	Value *T // nil: null
}

// Given returns a member with that value; nil is null.
func Given[T any](value *T) Field[T] { return Field[T]{Given: true, Value: value} }

// IsZero has a member that is not given left out.
func (f Field[T]) IsZero() bool { return !f.Given }

// MarshalJSON writes the value.
func (f Field[T]) MarshalJSON() ([]byte, error) { return json.Marshal(f.Value) }

// UnmarshalJSON reads the value; encoding/json calls it for a member that is there.
func (f *Field[T]) UnmarshalJSON(data []byte) error {
	f.Given = true
	return json.Unmarshal(data, &f.Value)
}

// Inner implements strictjson.Wrapper.
func (f Field[T]) Inner() reflect.Type { return reflect.TypeFor[T]() }

// FieldError is what is wrong with a request's body, and where.
type FieldError = strictjson.FieldError

// Decode reads a JSON object into a struct of this package, as strictjson.Decode does. No
// body is an empty object.
func Decode(body []byte, into any) error {
	if len(body) == 0 {
		return nil
	}
	return strictjson.Decode(body, into)
}
