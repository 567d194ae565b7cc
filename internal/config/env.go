package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// envPrefix begins the name of every variable that overrides a setting.
const envPrefix = "SLUICE_"

// override is one variable and the setting that it gives.
type override struct {
	name    string
	path    path
	spec    *spec
	value   string
	clash   bool  // the name fits more than one element of the file
	numbers []int // the list indices in the path, so that elements come in order
}

// overlay puts the settings of the environment over those of the file. It returns
// the variables that were meant to be settings, by their prefix, and are none.
func overlay(root *node, s *spec, environ map[string]string, f *faults) (unknown []UnknownVariable) {
	var overrides []override
	for name, value := range environ {
		rest, ok := strings.CutPrefix(name, envPrefix)
		if !ok {
			continue
		}
		o, ok := resolve(root, s, rest)
		if !ok {
			if !isForeign(rest, value) {
				unknown = append(unknown, UnknownVariable{Name: name, Near: nearestVariable(root, s, rest)})
			}
			continue
		}
		o.name, o.value = name, value
		overrides = append(overrides, o)
	}
	slices.SortFunc(unknown, func(a, b UnknownVariable) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(overrides, func(a, b override) int {
		return cmp.Or(slices.Compare(a.numbers, b.numbers), cmp.Compare(a.name, b.name))
	})
	for _, o := range overrides {
		apply(root, o, f)
	}
	return unknown
}

func apply(root *node, o override, f *faults) {
	at := origin{env: o.name}
	if o.clash {
		f.add(at, o.path, "fits more than one name in the file; rename one of them")
		return
	}
	if next, gap := o.gap(root); gap {
		f.add(at, o.path, "leaves a gap in the list; the next element is %d", next)
		return
	}
	value := &node{kind: nodeText, text: o.value, env: true, at: at}
	if o.spec.kind == kindList {
		value = listFromEnv(o.value, at)
	}
	root.put(o.path, value)
}

// gap reports whether a list on the way has no element yet before the one that the
// variable gives, and which one would be next.
func (o override) gap(root *node) (next int, gap bool) {
	lists := 0
	for i, segment := range o.path {
		if !strings.HasPrefix(segment, "[") {
			continue
		}
		length := 0
		if list := root.lookup(o.path[:i]); list != nil {
			length = len(list.items)
		}
		if o.numbers[lists] > length {
			return length, true
		}
		lists++
	}
	return 0, false
}

// listFromEnv splits at commas. An empty variable is an empty list.
func listFromEnv(text string, at origin) *node {
	list := &node{kind: nodeList, at: at}
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			list.items = append(list.items, &node{kind: nodeText, text: part, env: true, at: at})
		}
	}
	return list
}

// resolve finds the setting that the rest of a variable's name stands for. n is the
// file's node at s, or nil.
func resolve(n *node, s *spec, rest string) (override, bool) {
	switch s.kind {
	case kindStruct:
		return resolveField(n, s, rest)
	case kindMap:
		return resolveName(n, s, rest)
	case kindList:
		if s.elem.kind == kindStruct {
			return resolveElement(n, s, rest)
		}
	}
	return override{spec: s}, rest == ""
}

func resolveField(n *node, s *spec, rest string) (override, bool) {
	for _, f := range s.fields {
		tail, ok := strings.CutPrefix(rest, strings.ToUpper(f.name))
		if !ok {
			continue
		}
		if tail, ok = strings.CutPrefix(tail, "_"); !ok && tail != "" {
			continue
		}
		if o, ok := resolve(descend(n, f.name), f, tail); ok {
			o.path = slices.Insert(o.path, 0, f.name)
			return o, true
		}
	}
	return override{}, false
}

// resolveName splits the rest into an element's name and a setting in it. A name
// that the file has goes first; else the longest known setting at the end wins.
func resolveName(n *node, s *spec, rest string) (override, bool) {
	if s.elem.kind != kindStruct {
		return resolveText(n, s, rest)
	}
	var fresh override
	found := false
	for i := range len(rest) {
		if rest[i] != '_' || i == 0 {
			continue
		}
		name := strings.ToLower(rest[:i])
		names := namesLike(n, name)
		if len(names) > 0 {
			name = names[0]
		}
		o, ok := resolve(descend(n, name), s.elem, rest[i+1:])
		if !ok {
			continue
		}
		o.path = slices.Insert(o.path, 0, name)
		if len(names) > 0 {
			o.clash = len(names) > 1
			return o, true
		}
		if !found {
			fresh, found = o, true
		}
	}
	return fresh, found
}

// resolveText takes the rest for the name of one text among several, such as an alias.
func resolveText(n *node, s *spec, rest string) (override, bool) {
	if rest == "" {
		return override{}, false
	}
	name := strings.ToLower(rest)
	names := namesLike(n, name)
	if len(names) > 0 {
		name = names[0]
	}
	return override{path: path{name}, spec: s.elem, clash: len(names) > 1}, true
}

// namesLike returns the names in the file that a variable can mean by name, in which
// "_" may stand for whatever a variable's name cannot have. An exact match is the only
// one.
func namesLike(n *node, name string) []string {
	if n == nil {
		return nil
	}
	var names []string
	for _, e := range n.entries {
		if e.key == name {
			return []string{name}
		}
		if plainName(e.key) == name {
			names = append(names, e.key)
		}
	}
	return names
}

// plainName is what a name looks like in that of a variable, in lower case.
func plainName(name string) string {
	return strings.Map(func(r rune) rune {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return '_'
		}
		return r
	}, strings.ToLower(name))
}

func resolveElement(n *node, s *spec, rest string) (override, bool) {
	digits, tail, ok := strings.Cut(rest, "_")
	i, err := strconv.Atoi(digits)
	if !ok || err != nil || i < 0 || strconv.Itoa(i) != digits {
		return override{}, false
	}
	segment := "[" + digits + "]"
	o, ok := resolve(descend(n, segment), s.elem, tail)
	o.path = slices.Insert(o.path, 0, segment)
	o.numbers = slices.Insert(o.numbers, 0, i)
	return o, ok
}

func descend(n *node, segment string) *node {
	if n == nil {
		return nil
	}
	return n.descend(segment)
}

// environMap turns NAME=value pairs into a map.
func environMap(environ []string) map[string]string {
	m := make(map[string]string, len(environ))
	for _, pair := range environ {
		if name, value, ok := strings.Cut(pair, "="); ok {
			m[name] = value
		}
	}
	return m
}
