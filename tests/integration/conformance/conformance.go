// Package conformance holds JSON to the description that OpenAI gives of its objects:
// files, batches, their lines, errors and webhook events. The schemas lie in testdata.
//
// It is for tests, and knows nothing of Sluice.
package conformance

import (
	"bytes"
	_ "embed" // for the schemas
	"fmt"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// The objects that there are schemas of. The events are named by their type.
const (
	File           = "File"
	FileList       = "FileList"
	FileDeleted    = "FileDeleted"
	Batch          = "Batch"
	BatchList      = "BatchList"
	BatchLine      = "BatchLine" // of an output or error file
	Error          = "Error"     // the body of every answer that is one
	ChatCompletion = "ChatCompletion"
	EmbeddingList  = "EmbeddingList"
	BatchCompleted = "batch.completed"
	BatchFailed    = "batch.failed"
	BatchExpired   = "batch.expired"
	BatchCancelled = "batch.cancelled"
)

//go:embed testdata/objects.json
var objects []byte

// Schemas check JSON. They are safe for concurrent use.
type Schemas struct{ byName map[string]*jsonschema.Schema }

// Load compiles the schemas.
func Load() (*Schemas, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(objects))
	if err != nil {
		return nil, fmt.Errorf("read schemas: %w", err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	const name = "objects.json"
	if err := compiler.AddResource(name, doc); err != nil {
		return nil, fmt.Errorf("read schemas: %w", err)
	}
	s := &Schemas{byName: make(map[string]*jsonschema.Schema)}
	for _, object := range []string{
		File, FileList, FileDeleted, Batch, BatchList, BatchLine, Error, ChatCompletion, EmbeddingList,
		BatchCompleted, BatchFailed, BatchExpired, BatchCancelled,
	} {
		if s.byName[object], err = compiler.Compile(name + "#/$defs/" + object); err != nil {
			return nil, fmt.Errorf("compile schema %s: %w", object, err)
		}
	}
	return s, nil
}

// Check returns what of the body is not as the object's schema has it.
func (s *Schemas) Check(object string, body []byte) error {
	schema, ok := s.byName[object]
	if !ok {
		return fmt.Errorf("check %s: there is no such schema", object)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("check %s: %w", object, err)
	}
	if err := schema.Validate(value); err != nil {
		return fmt.Errorf("check %s: %w\n%s", object, err, body)
	}
	return nil
}
