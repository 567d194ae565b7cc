package chat

import (
	"slices"
	"strconv"
	"strings"

	"sluice/internal/inference"
)

// fault is what is wrong with a field. Its path grows from the inside out while the
// parsers return, so that a request without fault pays nothing for it.
type fault struct {
	path, problem string
}

func faulty(path, problem string) *fault { return &fault{path: path, problem: problem} }

// under puts a name in front of the path.
func (f *fault) under(name string) *fault {
	if f == nil {
		return nil
	}
	if f.path != "" {
		name += "." + f.path
	}
	f.path = name
	return f
}

// at puts a name and an index in front of the path.
func (f *fault) at(name string, index int) *fault {
	if f == nil {
		return nil
	}
	return f.under(element(name, index))
}

func element(name string, index int) string { return name + "[" + strconv.Itoa(index) + "]" }

func (f *fault) toError() error {
	e := inference.Errorf(inference.CodeInvalidRequest, "%s", strings.TrimSpace(f.path+" "+f.problem))
	e.Param = f.path
	return e
}

// object reads the members of one object that have a meaning here. The first fault
// stays and every later read gives the zero value, so that a parser may read on and
// look once.
type object struct {
	names []string
	vals  []value
	bad   *fault
}

// read takes the named members of v. A member that is read may stand there only once,
// because two parsers may disagree about which one counts.
func read(v value, names ...string) *object {
	o := &object{names: names, vals: make([]value, len(names))}
	if v.absent() {
		o.bad = faulty("", "is missing")
		return o
	}
	if v.kind() != '{' {
		o.bad = faulty("", "must be an object")
		return o
	}
	for name, val := range v.members() {
		i := slices.Index(names, name)
		if i < 0 {
			continue
		}
		if o.vals[i] != "" {
			o.fail(name, "is given more than once")
			break
		}
		o.vals[i] = val
	}
	return o
}

func (o *object) fail(name, problem string) {
	if o.bad == nil {
		o.bad = faulty(name, problem)
	}
}

// keep remembers the fault of a nested parser.
func (o *object) keep(f *fault) {
	if o.bad == nil {
		o.bad = f
	}
}

// get returns a member, nothing if it is missing or null or if there is a fault.
func (o *object) get(name string) value {
	if o.bad != nil {
		return ""
	}
	if v := o.vals[slices.Index(o.names, name)]; !v.absent() {
		return v
	}
	return ""
}

func (o *object) has(name string) bool { return o.get(name) != "" }

func (o *object) need(name string) {
	if !o.has(name) {
		o.fail(name, "is missing")
	}
}

func (o *object) text(name string) string {
	v := o.get(name)
	if v == "" {
		return ""
	}
	if v.kind() != '"' {
		o.fail(name, "must be a string")
		return ""
	}
	return v.text()
}

// name reads a string that must be there and say something.
func (o *object) name(name string) string {
	o.need(name)
	s := o.text(name)
	if s == "" {
		o.fail(name, "must not be empty")
	}
	return s
}

// choice reads a string that is one of a few words.
func (o *object) choice(name string, words ...string) string {
	if !o.has(name) {
		return ""
	}
	s := o.text(name)
	if !slices.Contains(words, s) {
		o.fail(name, "must be one of "+strings.Join(words, ", "))
		return ""
	}
	return s
}

func (o *object) flag(name string) *bool {
	v := o.get(name)
	switch v.kind() {
	case 0:
		return nil
	case 't', 'f':
		return new(v.kind() == 't')
	}
	o.fail(name, "must be true or false")
	return nil
}

// integer reads a number that is spelled as an integer; 1.0 and 1e0 are not.
func (o *object) integer(name string) *int64 {
	v := o.get(name)
	if v == "" {
		return nil
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil {
		o.fail(name, "must be an integer")
		return nil
	}
	return &n
}

// count reads an integer that is not negative.
func (o *object) count(name string) *int64 {
	n := o.integer(name)
	if n != nil && *n < 0 {
		o.fail(name, "must not be negative")
		return nil
	}
	return n
}

func (o *object) number(name string) *float64 {
	v := o.get(name)
	if v == "" {
		return nil
	}
	if !v.isNumber() {
		o.fail(name, "must be a number")
		return nil
	}
	f, err := strconv.ParseFloat(string(v), 64)
	if err != nil {
		o.fail(name, "is out of range")
		return nil
	}
	return &f
}

// object reads an object and leaves it as it stands.
func (o *object) object(name string) Raw {
	v := o.get(name)
	if v != "" && v.kind() != '{' {
		o.fail(name, "must be an object")
		return ""
	}
	return v.raw()
}

// list returns the elements of an array of at most limit elements.
func (o *object) list(name string, limit int) []value {
	v := o.get(name)
	if v == "" {
		return nil
	}
	if v.kind() != '[' {
		o.fail(name, "must be an array")
		return nil
	}
	var all []value
	for i, each := range v.elements() {
		if i == limit {
			o.fail(name, "must hold at most "+strconv.Itoa(limit)+" elements")
			return nil
		}
		all = append(all, each)
	}
	return all
}

// texts reads an array of strings.
func (o *object) texts(name string, limit int) []string {
	var all []string
	for i, each := range o.list(name, limit) {
		if each.kind() != '"' {
			o.fail(element(name, i), "must be a string")
			return nil
		}
		all = append(all, each.text())
	}
	return all
}
