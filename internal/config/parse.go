package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// What one file may hold. The parser takes time that grows with the square of the
// tokens and stack that grows with the depth, so both are counted before it runs.
const (
	maxFileBytes = 1 << 20
	maxTokens    = 50_000
	maxDepth     = 32
	maxNodes     = 50_000 // with every alias written out
)

// parseFile reads YAML into nodes. What is wrong goes to f; the result is then not
// complete, and never nil. whole reports whether it is all that the file says: of a file
// that cannot be read as YAML nothing can be told to be missing.
func parseFile(name string, data []byte, f *faults) (root *node, whole bool) {
	root = &node{kind: nodeNull, at: origin{file: name}}
	text := strings.TrimPrefix(string(data), "\ufeff")
	switch {
	case len(data) > maxFileBytes:
		f.add(root.at, nil, "is larger than %d bytes", maxFileBytes)
		return root, false
	case !utf8.ValidString(text):
		f.add(root.at, nil, "is not UTF-8 text")
		return root, false
	}
	file, err := parseYAML(text)
	if err != nil {
		at, problem := describeSyntax(name, text, err)
		f.add(at, nil, "%s", problem)
		return root, false
	}
	var body ast.Node
	for i, doc := range file.Docs {
		if _, directive := doc.Body.(*ast.DirectiveNode); directive && i == 0 {
			continue // %YAML is a document of its own to the parser
		}
		if body != nil {
			f.add(originOf(name, doc.Start), nil, "a second document begins here; a configuration is one document")
			return root, false
		}
		body = doc.Body
	}
	b := &builder{file: name, faults: f, anchors: make(map[string]*node)}
	built := b.build(body, nil)
	if b.nodes > maxNodes {
		f.add(root.at, nil, "holds more than %d values, aliases written out", maxNodes)
		return root, false
	}
	built.at = root.at // what the file does not give stands nowhere in it
	return built, true
}

// limitError is a file that is refused before it is parsed.
type limitError struct {
	at      *token.Token
	problem string
}

func (e *limitError) Error() string { return e.problem }

// parseYAML runs the parser within its bounds. A panic of the parser on bytes that
// it did not foresee becomes an error: a bad file must not bring a process down
// when it is read again.
func parseYAML(text string) (file *ast.File, err error) {
	defer func() {
		if recover() != nil {
			file, err = nil, errors.New("the YAML parser cannot read it")
		}
	}()
	tokens := lexer.Tokenize(text)
	if len(tokens) > maxTokens {
		return nil, &limitError{problem: fmt.Sprintf("has more than %d YAML tokens", maxTokens)}
	}
	if deep := tooDeep(tokens); deep != nil {
		return nil, &limitError{at: deep, problem: fmt.Sprintf("is nested more than %d deep", maxDepth)}
	}
	// Keys given twice are found later, so that all of them are named.
	return parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
}

// tooDeep returns the first token that stands too deep, or nil. Brackets nest by
// themselves; block structure nests where an indicator stands further right than
// the one before it.
func tooDeep(tokens token.Tokens) *token.Token {
	var columns []int
	flow := 0
	for _, tk := range tokens {
		switch tk.Type {
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow = max(0, flow-1)
		case token.SequenceEntryType, token.MappingKeyType, token.MappingValueType, token.AnchorType, token.TagType:
			column := tk.Position.Column
			for len(columns) > 0 && (columns[len(columns)-1] >= column || tk.Position.IndentNum == 0 && startsLine(tk)) {
				columns = columns[:len(columns)-1]
			}
			columns = append(columns, column)
		}
		if flow+len(columns) > 2*maxDepth {
			return tk
		}
	}
	return nil
}

// startsLine reports whether nothing but space stands before the token.
func startsLine(tk *token.Token) bool {
	return tk.Prev == nil || tk.Prev.Position.Line < tk.Position.Line
}

// describeSyntax returns where a parse error stands and what it says, without the
// excerpt that the parser would add: it may hold a secret.
func describeSyntax(name, text string, err error) (origin, string) {
	if limit, ok := errors.AsType[*limitError](err); ok {
		return originOf(name, limit.at), limit.problem
	}
	var syntax *yaml.SyntaxError
	if !errors.As(err, &syntax) {
		return origin{file: name}, "is not valid YAML: " + err.Error()
	}
	at := originOf(name, syntax.Token)
	problem := "is not valid YAML: " + syntax.Message
	lines := strings.Split(text, "\n")
	if at.line > 0 && at.line <= len(lines) && strings.Contains(lines[at.line-1], "${") {
		problem += `; inside { } or [ ] a variable needs quotes: "${NAME}"`
	}
	return at, problem
}

func originOf(name string, tk *token.Token) origin {
	if tk == nil || tk.Position == nil {
		return origin{file: name}
	}
	return origin{file: name, line: tk.Position.Line, col: tk.Position.Column}
}

// builder turns the parser's tree into nodes.
type builder struct {
	file    string
	faults  *faults
	anchors map[string]*node
	nodes   int
}

func (b *builder) build(n ast.Node, p path) *node {
	b.nodes++
	if n == nil || b.nodes > maxNodes {
		return &node{kind: nodeNull}
	}
	at := originOf(b.file, n.GetToken())
	if len(p) > maxDepth {
		b.faults.add(at, p, "is nested more than %d deep", maxDepth)
		return &node{kind: nodeNull, at: at}
	}
	switch n := n.(type) {
	case *ast.AnchorNode:
		built := b.build(n.Value, p)
		b.anchors[n.Name.GetToken().Value] = built
		return built
	case *ast.AliasNode:
		anchor := b.anchors[n.Value.GetToken().Value]
		if anchor == nil {
			b.faults.add(at, p, "is an alias without an anchor before it")
			return &node{kind: nodeNull, at: at}
		}
		return b.clone(anchor)
	case *ast.TagNode:
		b.faults.add(at, p, "has a YAML tag; tags have no meaning here, remove it")
		return &node{kind: nodeNull, at: at}
	case *ast.SequenceNode:
		built := &node{kind: nodeList, at: at}
		for i, item := range n.Values {
			built.items = append(built.items, b.build(item, p.at(i)))
		}
		return built
	case ast.MapNode:
		return b.buildMap(n, at, p)
	default:
		return buildScalar(n, at)
	}
}

func buildScalar(n ast.Node, at origin) *node {
	switch n := n.(type) {
	case *ast.NullNode:
		return &node{kind: nodeNull, at: at}
	case *ast.StringNode:
		return &node{kind: nodeText, text: n.Value, at: at}
	case *ast.LiteralNode:
		return &node{kind: nodeText, text: n.Value.Value, at: at}
	case *ast.IntegerNode:
		return &node{kind: nodeInt, text: fmt.Sprint(n.Value), at: at}
	case *ast.FloatNode:
		return &node{kind: nodeFloat, text: strconv.FormatFloat(n.Value, 'f', -1, 64), at: at}
	case *ast.BoolNode:
		return &node{kind: nodeBool, text: strconv.FormatBool(n.Value), at: at}
	default:
		return &node{kind: nodeOther, at: at}
	}
}

// buildMap keeps a key that is given twice out and reports it; a merge key's
// settings go behind those that the section gives itself.
func (b *builder) buildMap(n ast.MapNode, at origin, p path) *node {
	built := &node{kind: nodeMap, at: at}
	var merged []entry
	lines := make(map[string]int)
	for iter := n.MapRange(); iter.Next(); {
		keyAt := originOf(b.file, iter.Key().GetToken())
		if iter.Key().IsMergeKey() {
			merged = append(merged, b.merge(b.build(iter.Value(), p), p)...)
			continue
		}
		key, ok := keyText(iter.Key())
		if !ok {
			b.faults.add(keyAt, p, "has a key that is not plain text")
			continue
		}
		value := b.build(iter.Value(), p.with(key))
		if line, twice := lines[key]; twice {
			b.faults.add(keyAt, p.with(key), "is given a second time; the first is on line %d", line)
			continue
		}
		lines[key] = keyAt.line
		// A section's own token is somewhere inside it, and nothing has none.
		if value.kind == nodeMap || value.kind == nodeList || value.kind == nodeNull {
			value.at = keyAt
		}
		built.entries = append(built.entries, entry{key: key, at: keyAt, value: value})
	}
	for _, e := range merged {
		if built.child(e.key) == nil {
			built.entries = append(built.entries, e)
		}
	}
	return built
}

// merge returns the settings that a merge key brings: those of one section, or of
// several in a list, the first of which wins.
func (b *builder) merge(source *node, p path) []entry {
	switch source.kind {
	case nodeMap:
		return source.entries
	case nodeList:
		var all []entry
		for _, item := range source.items {
			if item.kind != nodeMap {
				b.faults.add(item.at, p, "merges something that is not a section")
				continue
			}
			all = append(all, item.entries...)
		}
		return all
	default:
		b.faults.add(source.at, p, "merges something that is not a section")
		return nil
	}
}

func keyText(key ast.MapKeyNode) (string, bool) {
	switch key := key.(type) {
	case *ast.StringNode:
		return key.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return key.GetToken().Value, true
	default:
		return "", false
	}
}

// clone copies what an anchor holds, so that an override of one place leaves the
// others alone. It counts towards maxNodes: aliases of aliases grow fast.
func (b *builder) clone(n *node) *node {
	b.nodes++
	if b.nodes > maxNodes {
		return &node{kind: nodeNull, at: n.at}
	}
	c := *n
	c.items = make([]*node, len(n.items))
	for i, item := range n.items {
		c.items[i] = b.clone(item)
	}
	c.entries = make([]entry, len(n.entries))
	for i, e := range n.entries {
		e.value = b.clone(e.value)
		c.entries[i] = e
	}
	return &c
}
