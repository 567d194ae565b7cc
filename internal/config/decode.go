package config

import (
	"reflect"
	"regexp"
	"strings"
)

// decoder fills the structs from nodes and notes every fault on the way.
type decoder struct {
	faults   *faults
	expander *expander

	// withheld says whether the setting at the path is not for this role. The side is
	// empty for one that every serving role has.
	withheld func(p path, side Role) bool

	// blind is above zero inside a setting that is withheld: it is read for its form
	// alone, and its variables need not be set.
	blind int
}

// decode fills v, which is of s's type, from n. What n does not give stays.
func (d *decoder) decode(n *node, s *spec, v reflect.Value, p path) {
	switch s.kind {
	case kindStruct:
		d.decodeStruct(n, s, v, p)
	case kindMap:
		d.decodeMap(n, s, v, p)
	case kindList:
		d.decodeList(n, s, v, p)
	default:
		d.decodeScalar(n, s, v, p)
	}
}

func (d *decoder) decodeStruct(n *node, s *spec, v reflect.Value, p path) {
	if n.kind == nodeNull {
		return // a section whose settings are all commented out
	}
	if n.kind != nodeMap {
		d.mismatch(n, s, p)
		return
	}
	if v.Kind() == reflect.Pointer {
		fresh := reflect.New(s.typ)
		applyDefaults(s, fresh.Elem())
		v.Set(fresh)
		v = fresh.Elem()
	}
	for _, e := range n.entries {
		f := s.field(e.key)
		if f == nil {
			d.faults.add(e.at, p.with(e.key), "%s", unknownKey(e.key, s.fieldNames()))
			continue
		}
		d.decodeField(e.value, f, v.Field(f.index), p.with(e.key))
	}
}

// decodeField leaves a setting at its default when it is not for this role. A secret has
// none.
func (d *decoder) decodeField(n *node, f *spec, v reflect.Value, p path) {
	if !d.withheld(p, f.side) {
		d.decode(n, f, v, p)
		return
	}
	unset := reflect.New(v.Type()).Elem()
	unset.Set(v)
	d.blind++
	d.decode(n, f, v, p)
	d.blind--
	v.Set(unset)
}

func (d *decoder) decodeMap(n *node, s *spec, v reflect.Value, p path) {
	if n.kind == nodeNull {
		return
	}
	if n.kind != nodeMap {
		d.mismatch(n, s, p)
		return
	}
	if problem := s.checkLen(len(n.entries)); problem != "" {
		d.faults.add(n.at, p, "%s", problem)
		return
	}
	if len(n.entries) > 0 {
		v.Set(reflect.MakeMap(s.typ))
	}
	for _, e := range n.entries {
		element := reflect.New(s.elem.typ).Elem()
		applyDefaults(s.elem, element)
		d.decode(e.value, s.elem, element, p.with(e.key))
		v.SetMapIndex(reflect.ValueOf(e.key), element)
	}
}

func (d *decoder) decodeList(n *node, s *spec, v reflect.Value, p path) {
	if n.kind != nodeList {
		d.mismatch(n, s, p)
		return
	}
	if len(n.items) == 0 {
		v.SetZero() // an empty list is the same as none
		return
	}
	if problem := s.checkLen(len(n.items)); problem != "" {
		d.faults.add(n.at, p, "%s", problem)
		return
	}
	list := reflect.MakeSlice(s.typ, len(n.items), len(n.items))
	for i, item := range n.items {
		applyDefaults(s.elem, list.Index(i))
		d.decode(item, s.elem, list.Index(i), p.at(i))
	}
	v.Set(list)
}

func (d *decoder) decodeScalar(n *node, s *spec, v reflect.Value, p path) {
	text, convert := n.text, n.env
	if n.kind == nodeText && !n.env && hasVariable(text) {
		if d.blind > 0 {
			return
		}
		var problem string
		if text, problem = d.expander.expand(text); problem != "" {
			d.faults.add(n.at, p, "%s", problem)
			return
		}
		convert = true
	}
	if !convert && !fits(n, s.kind) {
		d.mismatch(n, s, p)
		return
	}
	value, problem := parseScalar(s.kind, text)
	if problem == "" {
		problem = s.check(value)
	}
	if problem != "" {
		d.faults.add(n.at, p, "%s", problem)
		return
	}
	if s.optional {
		v.Set(reflect.New(s.typ))
		v = v.Elem()
	}
	v.Set(reflect.ValueOf(value).Convert(s.typ))
}

// fits reports whether a scalar as written in the file can be of the kind: text in
// quotes is no number, and a number is no text.
func fits(n *node, k kind) bool {
	switch k {
	case kindBool:
		return n.kind == nodeBool
	case kindInt, kindFloat, kindMoney:
		return n.kind == nodeInt || n.kind == nodeFloat
	case kindSize:
		return n.kind == nodeInt || n.kind == nodeFloat || n.kind == nodeText && regexp.MustCompile(sizePattern).MatchString(n.text)
	default:
		return n.kind == nodeText
	}
}

func (d *decoder) mismatch(n *node, s *spec, p path) {
	hint := ""
	if s.kind == kindText && (n.kind == nodeInt || n.kind == nodeFloat || n.kind == nodeBool) {
		hint = "; put it in quotes"
	}
	if n.kind == nodeNull {
		hint = "; remove the key to keep the default"
	}
	d.faults.add(n.at, p, "must be %s, not %s%s", s.kind.expected(), n.kind, hint)
}

// unknownKey says what is wrong with a key and which known one may be meant.
func unknownKey(key string, known []string) string {
	if showKey(key) == "?" {
		return "is a key that is not known; is there a space after the colon?"
	}
	if near := nearest(key, known); near != "" {
		return "is not known; did you mean " + near + "?"
	}
	return "is not known; known here: " + strings.Join(known, ", ")
}

// nearest returns the known key that a person most likely meant, or none.
func nearest(key string, known []string) string {
	best, bestDistance := "", 3
	for _, k := range known {
		if distance := editDistance(strings.ToLower(strings.ReplaceAll(key, "-", "_")), k); distance < bestDistance && distance < len(k) {
			best, bestDistance = k, distance
		}
	}
	return best
}

// editDistance counts the insertions, removals and replacements between a and b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
