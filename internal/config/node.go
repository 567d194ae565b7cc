package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// path leads to a setting from the root. A list's element is written as [0].
type path []string

func (p path) with(segment string) path { return append(slices.Clone(p), segment) }

func (p path) at(i int) path { return p.with("[" + strconv.Itoa(i) + "]") }

// String joins the path, leaving out any key that does not look like one: a value
// whose colon lacks its space is read as a key, and may be a secret.
func (p path) String() string {
	var b strings.Builder
	for _, segment := range p {
		if b.Len() > 0 && !strings.HasPrefix(segment, "[") {
			b.WriteByte('.')
		}
		b.WriteString(showKey(segment))
	}
	return b.String()
}

// showKey returns the key if it may be shown.
func showKey(key string) string {
	if len(key) > 64 || strings.ContainsFunc(key, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_-[].", r)
	}) {
		return "?"
	}
	return key
}

// origin is where a value was given.
type origin struct {
	file      string
	line, col int
	env       string // the variable, for a value from the environment
}

func (o origin) String() string {
	switch {
	case o.env != "":
		return "environment variable " + o.env
	case o.line > 0:
		return fmt.Sprintf("%s:%d:%d", o.file, o.line, o.col)
	default:
		return o.file
	}
}

// nodeKind is what was written, before it is known what should have been.
type nodeKind int

const (
	nodeNull nodeKind = iota
	nodeText
	nodeInt
	nodeFloat
	nodeBool
	nodeOther // not a number, infinity: read, but never wanted
	nodeList
	nodeMap
)

func (k nodeKind) String() string {
	return [...]string{"nothing", "text", "a whole number", "a number", "true or false", "something else", "a list", "a section"}[k]
}

// node is one value of the file or of the environment, not yet held against a spec.
type node struct {
	kind    nodeKind
	text    string // of a scalar
	env     bool   // from the environment: taken as it is, in whatever kind is wanted
	items   []*node
	entries []entry
	at      origin
}

type entry struct {
	key   string
	at    origin
	value *node
}

func (n *node) child(key string) *node {
	for _, e := range n.entries {
		if e.key == key {
			return e.value
		}
	}
	return nil
}

// descend returns the node that one segment of a path leads to, or nil.
func (n *node) descend(segment string) *node {
	if n.kind == nodeMap {
		return n.child(segment)
	}
	index, isIndex := strings.CutPrefix(segment, "[")
	if n.kind != nodeList || !isIndex {
		return nil
	}
	i, err := strconv.Atoi(strings.TrimSuffix(index, "]"))
	if err != nil || i < 0 || i >= len(n.items) {
		return nil
	}
	return n.items[i]
}

// where returns the place of the setting at p, or of the nearest section around it
// if it was not given.
func (n *node) where(p path) origin {
	at := n.at
	for _, segment := range p {
		if n = n.descend(segment); n == nil {
			return at
		}
		at = n.at
	}
	return at
}

// put sets the value at p, making the sections on the way. A value on the way that
// is no section stays: the decoder reports it.
func (n *node) put(p path, value *node) {
	for i, segment := range p {
		last := i == len(p)-1
		next := n.descend(segment)
		if next == nil || last {
			fresh := &node{kind: nodeNull, at: value.at}
			if last {
				fresh = value
			}
			if !n.replace(segment, fresh) {
				return
			}
			next = fresh
		}
		n = next
	}
}

// replace sets one child and reports whether n can have it.
func (n *node) replace(segment string, value *node) bool {
	isIndex := strings.HasPrefix(segment, "[")
	if n.kind == nodeNull {
		n.kind = nodeMap
		if isIndex {
			n.kind = nodeList
		}
	}
	switch {
	case isIndex && n.kind == nodeList:
		n.items = replaceItem(n.items, segment, value)
	case !isIndex && n.kind == nodeMap:
		i := slices.IndexFunc(n.entries, func(e entry) bool { return e.key == segment })
		if i < 0 {
			n.entries = append(n.entries, entry{key: segment, at: value.at, value: value})
			return true
		}
		n.entries[i].value = value
	default:
		return false
	}
	return true
}

func replaceItem(items []*node, segment string, value *node) []*node {
	i, err := strconv.Atoi(strings.Trim(segment, "[]"))
	if err == nil && i >= 0 && i < len(items) {
		items[i] = value
		return items
	}
	return append(items, value)
}

// lookup returns the node at p, or nil.
func (n *node) lookup(p path) *node {
	for _, segment := range p {
		if n = n.descend(segment); n == nil {
			return nil
		}
	}
	return n
}
