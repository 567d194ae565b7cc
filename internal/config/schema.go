package config

import (
	"embed"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"time"
)

// sources are the files with the settings' structs; the comments on their fields are the
// schema's descriptions, so that the two cannot differ.
//
//go:embed config.go routes.go limits.go cache.go auth.go
var sources embed.FS

// variableText is the schema of text with a variable in it, which may stand for a
// value of any kind.
var variableText = map[string]any{"type": "string", "pattern": `\$\{`}

// Schema returns the JSON Schema (draft 2020-12) of the configuration file. Of each setting
// x-reload says when a change takes force: live, while the process runs, or restart.
func Schema() ([]byte, error) {
	docs, err := fieldDocs()
	if err != nil {
		return nil, fmt.Errorf("read descriptions: %w", err)
	}
	schema := schemaOf(specOf(Config{}), docs)
	schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	schema["title"] = "Sluice configuration"
	text, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode schema: %w", err)
	}
	return append(text, '\n'), nil
}

// schemaOf describes what the decoder accepts for s.
func schemaOf(s *spec, docs map[string]string) map[string]any {
	schema := shapeOf(s, docs)
	if doc := docs[s.doc]; doc != "" {
		schema["description"] = doc
	}
	if s.def != nil {
		schema["default"] = jsonValue(s.def)
	}
	if s.reload != "" && s.name != "" && s.kind != kindStruct {
		schema["x-reload"] = s.reload
	}
	return schema
}

func shapeOf(s *spec, docs map[string]string) map[string]any {
	switch s.kind {
	case kindStruct:
		properties := make(map[string]any, len(s.fields))
		for _, f := range s.fields {
			properties[f.name] = schemaOf(f, docs)
		}
		return map[string]any{
			"type":                 []string{"object", "null"},
			"properties":           properties,
			"additionalProperties": false,
		}
	case kindMap:
		schema := map[string]any{
			"type":                 []string{"object", "null"},
			"additionalProperties": schemaOf(s.elem, docs),
		}
		if s.elem.kind == kindStruct { // the providers; other names are what somebody else calls a thing
			schema["propertyNames"] = map[string]any{"pattern": providerNamePattern}
		}
		if s.max != nil {
			schema["maxProperties"] = s.max
		}
		return schema
	case kindList:
		schema := map[string]any{"type": "array", "items": schemaOf(s.elem, docs)}
		if s.max != nil {
			schema["maxItems"] = s.max
		}
		return schema
	default:
		return scalarSchema(s)
	}
}

func scalarSchema(s *spec) map[string]any {
	number := map[string]any{"type": "integer"}
	if s.min != nil {
		number["minimum"] = jsonValue(s.min)
	}
	if s.max != nil {
		number["maximum"] = jsonValue(s.max)
	}
	switch s.kind {
	case kindBool:
		return anyOf(map[string]any{"type": "boolean"}, variableText)
	case kindInt:
		return anyOf(number, variableText)
	case kindFloat, kindMoney:
		number["type"] = "number"
		return anyOf(number, variableText)
	case kindSize:
		return anyOf(number, map[string]any{"type": "string", "pattern": sizePattern}, variableText)
	case kindDuration:
		return anyOf(map[string]any{"type": "string", "pattern": durationPattern}, variableText)
	case kindTime:
		return anyOf(map[string]any{"type": "string", "format": "date-time"}, variableText)
	}
	if len(s.oneOf) > 0 {
		return anyOf(map[string]any{"type": "string", "enum": s.oneOf}, variableText)
	}
	return map[string]any{"type": "string"}
}

func anyOf(schemas ...map[string]any) map[string]any { return map[string]any{"anyOf": schemas} }

// jsonValue writes a default or a bound as it would stand in the file.
func jsonValue(value any) any {
	if d, ok := value.(time.Duration); ok {
		return durationText(d)
	}
	return value
}

// durationText writes a duration without the zero parts that its String ends with.
func durationText(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// fieldDocs returns the comments of the structs' fields by Type.Field.
func fieldDocs() (map[string]string, error) {
	docs := make(map[string]string)
	files, err := sources.ReadDir(".")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		source, err := sources.ReadFile(f.Name())
		if err != nil {
			return nil, err
		}
		file, err := parser.ParseFile(token.NewFileSet(), "", source, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		addFieldDocs(docs, file)
	}
	return docs, nil
}

func addFieldDocs(docs map[string]string, file *ast.File) {
	ast.Inspect(file, func(n ast.Node) bool {
		declared, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if body, ok := declared.Type.(*ast.StructType); ok {
			for _, field := range body.Fields.List {
				for _, name := range field.Names {
					docs[declared.Name.Name+"."+name.Name] = strings.Join(strings.Fields(field.Doc.Text()), " ")
				}
			}
		}
		return false
	})
}
