// Package adminapitest holds what is said on the admin API against the API's OpenAPI
// document. A test puts a Checker between itself and the API; then whatever it asks is
// checked beside what it asks it for. The package serves nothing itself.
package adminapitest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"sluice/internal/adminapi"
)

// contract is the document, read.
type contract struct {
	paths []*path // those with fewer parameters first, as OpenAPI has a request matched
	all   []*operation
}

// path is one path and what can be asked there.
type path struct {
	template   string
	parameters int
	pattern    *regexp.Regexp
	byMethod   map[string]*operation
}

// operation is what is promised of one method of a path.
type operation struct {
	name, method, template string

	query        map[string]*parameter
	body         *jsonschema.Schema // nil: it has none
	bodyRequired bool
	answers      map[int]*answer
}

// parameter is one of a query.
type parameter struct {
	required bool
	list     bool // of values with commas between them
	schema   *jsonschema.Schema
	kind     string // in JSON
}

// answer is what is promised of one status.
type answer struct {
	content map[string]*jsonschema.Schema // by media type; empty: it has no body
	headers []string                      // that it always has
}

// The parts of the document that are read here; the schemas are read by the compiler.
type (
	document struct {
		Paths      map[string]map[string]json.RawMessage
		Components struct {
			Parameters map[string]rawParameter
			Headers    map[string]rawHeader
			Responses  map[string]rawAnswer
		}
	}
	reference struct {
		Ref string `json:"$ref"`
	}
	rawParameter struct {
		reference
		Name, In string
		Required bool
		Schema   json.RawMessage
	}
	rawHeader struct {
		reference
		Required bool
	}
	rawContent map[string]struct{ Schema json.RawMessage }
	rawAnswer  struct {
		reference
		Headers map[string]rawHeader
		Content rawContent
	}
	rawOperation struct {
		OperationID string
		Parameters  []rawParameter
		RequestBody *struct {
			Required bool
			Content  rawContent
		}
		Responses map[string]rawAnswer
	}
)

const documentName = "openapi.json"

// reader turns the document into a contract.
type reader struct {
	doc      document
	compiler *jsonschema.Compiler
	inline   int // schemas that stand in no component
}

// load reads the document. It is an error if anything in it cannot be understood.
func load() (*contract, error) {
	text, err := adminapi.Document()
	if err != nil {
		return nil, err
	}
	return parse(text)
}

func parse(text []byte) (*contract, error) {
	whole, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("read the document: %w", err)
	}
	r := &reader{compiler: jsonschema.NewCompiler()}
	r.compiler.DefaultDraft(jsonschema.Draft2020)
	r.compiler.AssertFormat()
	if err := json.Unmarshal(text, &r.doc); err != nil {
		return nil, fmt.Errorf("read the document: %w", err)
	}
	if err := r.compiler.AddResource(documentName, whole); err != nil {
		return nil, fmt.Errorf("read the document: %w", err)
	}
	c := new(contract)
	for template, item := range r.doc.Paths {
		p, err := r.path(template, item)
		if err != nil {
			return nil, fmt.Errorf("read path %s: %w", template, err)
		}
		c.paths = append(c.paths, p)
		for _, op := range p.byMethod {
			c.all = append(c.all, op)
		}
	}
	slices.SortFunc(c.paths, func(a, b *path) int {
		if a.parameters != b.parameters {
			return a.parameters - b.parameters
		}
		return strings.Compare(a.template, b.template)
	})
	slices.SortFunc(c.all, func(a, b *operation) int { return strings.Compare(a.name, b.name) })
	return c, nil
}

var placeholder = regexp.MustCompile(`\\\{[a-z_]+\\\}`)

func (r *reader) path(template string, item map[string]json.RawMessage) (*path, error) {
	quoted := regexp.QuoteMeta(template)
	p := &path{
		template: template, parameters: strings.Count(template, "{"), byMethod: make(map[string]*operation),
		pattern: regexp.MustCompile("^" + placeholder.ReplaceAllString(quoted, "[^/]+") + "$"),
	}
	var shared []rawParameter
	if text, ok := item["parameters"]; ok {
		if err := json.Unmarshal(text, &shared); err != nil {
			return nil, fmt.Errorf("read parameters: %w", err)
		}
	}
	for word, text := range item {
		if word == "parameters" {
			continue
		}
		var raw rawOperation
		if err := json.Unmarshal(text, &raw); err != nil {
			return nil, fmt.Errorf("read operation %s: %w", word, err)
		}
		raw.Parameters = append(slices.Clone(shared), raw.Parameters...)
		op, err := r.operation(&raw)
		if err != nil {
			return nil, fmt.Errorf("read operation %s: %w", word, err)
		}
		op.method, op.template = strings.ToUpper(word), template
		p.byMethod[op.method] = op
	}
	return p, nil
}

func (r *reader) operation(raw *rawOperation) (*operation, error) {
	op := &operation{name: raw.OperationID, query: make(map[string]*parameter), answers: make(map[int]*answer)}
	for _, q := range raw.Parameters {
		q, err := resolve(q, q.Ref, "parameters", r.doc.Components.Parameters)
		if err != nil {
			return nil, err
		}
		schema, err := r.schema(q.Schema)
		if err != nil {
			return nil, fmt.Errorf("read parameter %s: %w", q.Name, err)
		}
		if q.In == "query" {
			op.query[q.Name] = parameterOf(q.Required, schema)
		}
	}
	if b := raw.RequestBody; b != nil {
		var err error
		if op.body, err = r.schema(b.Content["application/json"].Schema); err != nil {
			return nil, fmt.Errorf("read the request's body: %w", err)
		}
		op.bodyRequired = b.Required
	}
	for word, said := range raw.Responses {
		status, err := strconv.Atoi(word)
		if err != nil {
			return nil, fmt.Errorf("read answer %s: %w", word, err)
		}
		if op.answers[status], err = r.answer(said); err != nil {
			return nil, fmt.Errorf("read answer %s: %w", word, err)
		}
	}
	return op, nil
}

func parameterOf(required bool, schema *jsonschema.Schema) *parameter {
	q := &parameter{required: required, schema: schema}
	for schema.Ref != nil {
		schema = schema.Ref
	}
	if schema.Types == nil {
		return q
	}
	kind := func(s *jsonschema.Schema) string { return strings.Join(s.Types.ToStrings(), "") }
	if q.kind = kind(schema); q.kind == "array" {
		q.list, q.kind = true, "string"
	}
	return q
}

func (r *reader) answer(raw rawAnswer) (*answer, error) {
	raw, err := resolve(raw, raw.Ref, "responses", r.doc.Components.Responses)
	if err != nil {
		return nil, err
	}
	a := &answer{content: make(map[string]*jsonschema.Schema)}
	for media, said := range raw.Content {
		if a.content[media], err = r.schema(said.Schema); err != nil {
			return nil, fmt.Errorf("read %s: %w", media, err)
		}
	}
	for name, h := range raw.Headers {
		if h, err = resolve(h, h.Ref, "headers", r.doc.Components.Headers); err != nil {
			return nil, err
		}
		if h.Required {
			a.headers = append(a.headers, http.CanonicalHeaderKey(name))
		}
	}
	return a, nil
}

// resolve returns what a reference stands for, or what stands there itself.
func resolve[T any](there T, ref, kind string, all map[string]T) (T, error) {
	if ref == "" {
		return there, nil
	}
	name, ok := strings.CutPrefix(ref, "#/components/"+kind+"/")
	found, known := all[name]
	if !ok || !known {
		return there, fmt.Errorf("reference %s leads nowhere", ref)
	}
	return found, nil
}

// schema compiles a schema: a component where it stands, so that each is compiled once.
func (r *reader) schema(text json.RawMessage) (*jsonschema.Schema, error) {
	var ref reference
	if err := json.Unmarshal(text, &ref); err != nil {
		return nil, fmt.Errorf("read schema: %w", err)
	}
	if fragment, ok := strings.CutPrefix(ref.Ref, "#"); ok {
		return r.compiler.Compile(documentName + "#" + (&url.URL{Path: fragment}).EscapedPath())
	}
	schema, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("read schema: %w", err)
	}
	r.inline++
	name := "inline-" + strconv.Itoa(r.inline) + ".json"
	// What an inline schema refers to stands in the document.
	if err := r.compiler.AddResource(name, aimed(schema)); err != nil {
		return nil, fmt.Errorf("read schema: %w", err)
	}
	return r.compiler.Compile(name)
}

// aimed has the references of a schema begin at the document.
func aimed(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if text, ok := value.(string); ok && key == "$ref" {
				v[key] = documentName + text
				continue
			}
			v[key] = aimed(value)
		}
	case []any:
		for i := range v {
			v[i] = aimed(v[i])
		}
	}
	return v
}

// find returns the path that the request is to, or nil.
func (c *contract) find(escaped string) *path {
	for _, p := range c.paths {
		if p.pattern.MatchString(escaped) {
			return p
		}
	}
	return nil
}
