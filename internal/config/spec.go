package config

import (
	"reflect"
	"slices"
	"strings"
	"time"

	"sluice/internal/inference"
)

// kind is what a setting's value looks like in the file.
type kind int

const (
	kindStruct kind = iota
	kindMap
	kindList
	kindText
	kindBool
	kindInt
	kindSize
	kindFloat
	kindDuration
	kindTime
	kindMoney
)

// spec describes one setting: its kind and bounds, or the settings inside it. It is
// read off the structs' types and tags.
type spec struct {
	name  string // the key in the file; empty for the root and for elements
	doc   string // Type.Field, by which the field's comment is found
	kind  kind
	typ   reflect.Type
	index int // of the field in its struct

	def      any // parsed default; nil without one
	min, max any // parsed bounds, of a map or a list on the number of elements; nil without one
	bounds   [2]string
	oneOf    []string
	optional bool // a pointer to a scalar: not given is a value of its own
	side     Role // the role that alone may read it besides serve; empty for all
	reload   string

	fields []*spec // of a struct, in the order of the file
	elem   *spec   // of a map or a list
}

// specOf describes the type of v, a struct of this package.
func specOf(v any) *spec { return specOfType(reflect.TypeOf(v)) }

func specOfType(t reflect.Type) *spec {
	pointer := t.Kind() == reflect.Pointer
	if pointer {
		t = t.Elem()
	}
	s := &spec{typ: t, kind: kindOf(t)}
	s.optional = pointer && s.kind != kindStruct
	switch s.kind {
	case kindStruct:
		for i := range t.NumField() {
			s.fields = append(s.fields, specOfField(t, i))
		}
	case kindMap, kindList:
		s.elem = specOfType(t.Elem())
	}
	return s
}

func specOfField(owner reflect.Type, i int) *spec {
	field := owner.Field(i)
	s := specOfType(field.Type)
	s.name = field.Tag.Get("yaml")
	s.doc = owner.Name() + "." + field.Name
	s.index = i
	s.side = Role(field.Tag.Get("side"))
	s.setReload(field.Tag.Get("reload"))
	s.bounds = [2]string{field.Tag.Get("min"), field.Tag.Get("max")}
	s.def = s.tagValue(field.Tag.Get("default"))
	s.min, s.max = s.boundValue(s.bounds[0]), s.boundValue(s.bounds[1])
	if words := field.Tag.Get("oneof"); words != "" {
		of := s
		if s.kind == kindList {
			of = s.elem // each of them is one of the words
		}
		of.oneOf = strings.Split(words, ",")
	}
	return s
}

// setReload says when a change takes force, of the setting and of all below it that do
// not say it themselves.
func (s *spec) setReload(word string) {
	if s.reload != "" || word == "" {
		return
	}
	s.reload = word
	for _, f := range s.fields {
		f.setReload(word)
	}
	if s.elem != nil {
		s.elem.setReload(word)
	}
}

// boundValue is tagValue for a bound, which for a list or a map is a number of elements.
func (s *spec) boundValue(text string) any {
	if s.kind == kindList || s.kind == kindMap {
		return (&spec{kind: kindInt}).tagValue(text)
	}
	return s.tagValue(text)
}

// tagValue returns a tag's value in the setting's own kind, or nil for an empty
// one. A test holds every tag against this.
func (s *spec) tagValue(text string) any {
	if text == "" {
		return nil
	}
	if s.kind == kindList {
		return strings.Split(text, ",")
	}
	value, problem := parseScalar(s.kind, text)
	if problem != "" {
		return nil
	}
	return value
}

func kindOf(t reflect.Type) kind {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return kindDuration
	case reflect.TypeFor[time.Time]():
		return kindTime
	case reflect.TypeFor[Size]():
		return kindSize
	case reflect.TypeFor[inference.Cost]():
		return kindMoney
	}
	switch t.Kind() {
	case reflect.Struct:
		return kindStruct
	case reflect.Map:
		return kindMap
	case reflect.Slice:
		return kindList
	case reflect.Bool:
		return kindBool
	case reflect.Int:
		return kindInt
	case reflect.Float64:
		return kindFloat
	default:
		return kindText
	}
}

func (s *spec) field(name string) *spec {
	i := slices.IndexFunc(s.fields, func(f *spec) bool { return f.name == name })
	if i < 0 {
		return nil
	}
	return s.fields[i]
}

func (s *spec) fieldNames() []string {
	names := make([]string, len(s.fields))
	for i, f := range s.fields {
		names[i] = f.name
	}
	return names
}

// valueOf returns what ptr points to, as something that can be set.
func valueOf(ptr any) reflect.Value { return reflect.ValueOf(ptr).Elem() }

// applyDefaults sets every default below v, which is of s's type.
func applyDefaults(s *spec, v reflect.Value) {
	for _, f := range s.fields {
		target := v.Field(f.index)
		switch {
		case f.kind == kindStruct && target.Kind() == reflect.Struct:
			applyDefaults(f, target)
		case f.kind == kindList && f.def != nil:
			def := reflect.ValueOf(f.def).Convert(f.typ)
			target.Set(reflect.AppendSlice(reflect.MakeSlice(f.typ, 0, def.Len()), def)) // not to be shared
		case f.def != nil:
			target.Set(reflect.ValueOf(f.def).Convert(f.typ))
		}
	}
}
