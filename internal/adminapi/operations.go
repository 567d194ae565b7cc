package adminapi

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
)

// Operation is what a request to one of the API's operations may hold, as the document says.
type Operation struct {
	Query map[string]bool // the parameters that it knows
	Body  Body
}

// Body says what a request has for a body.
type Body int

// What a body may be.
const (
	NoBody    Body = iota // there must be none
	EmptyBody             // an object without members, or none
	WholeBody             // an object
)

// Operations returns every operation by its method and path, such as
// "GET /admin/v1/keys/{key}". Nobody may change it.
func Operations() (map[string]Operation, error) { return operations() }

var operations = sync.OnceValues(func() (map[string]Operation, error) {
	text, err := Document()
	if err != nil {
		return nil, err
	}
	return operationsOf(text)
})

type (
	described struct {
		Paths      map[string]map[string]json.RawMessage
		Components struct{ Parameters map[string]describedParameter }
	}
	describedParameter struct {
		Ref      string `json:"$ref"`
		Name, In string
	}
	describedOperation struct {
		Parameters  []describedParameter
		RequestBody *struct {
			Content map[string]struct {
				Schema struct {
					Ref string `json:"$ref"`
				}
			}
		}
	}
)

// sharedParameters stands among the methods of a path.
const sharedParameters = "parameters"

func operationsOf(text []byte) (map[string]Operation, error) {
	var doc described
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("read the OpenAPI document: %w", err)
	}
	all := make(map[string]Operation)
	for path, item := range doc.Paths {
		for method, there := range item {
			if method == sharedParameters {
				continue // these are of the path itself
			}
			var raw describedOperation
			if err := json.Unmarshal(there, &raw); err != nil {
				return nil, fmt.Errorf("read %s of %s: %w", method, path, err)
			}
			op := Operation{Query: make(map[string]bool)}
			for _, p := range raw.Parameters {
				if p.Ref != "" {
					p = doc.Components.Parameters[p.Ref[strings.LastIndex(p.Ref, "/")+1:]]
				}
				if p.In == "query" {
					op.Query[p.Name] = true
				}
			}
			switch {
			case raw.RequestBody == nil:
			case strings.HasSuffix(raw.RequestBody.Content["application/json"].Schema.Ref, "/Nothing"):
				op.Body = EmptyBody
			default:
				op.Body = WholeBody
			}
			all[strings.ToUpper(method)+" "+path] = op
		}
	}
	return all, nil
}
