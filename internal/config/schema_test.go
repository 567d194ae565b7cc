package config

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
)

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := Schema()
	require.NoError(t, err)
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	require.NoError(t, err)
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	require.NoError(t, compiler.AddResource("sluice.json", doc))
	schema, err := compiler.Compile("sluice.json")
	require.NoError(t, err)
	return schema
}

// instance reads YAML as an editor would, with another decoder than the package's.
func instance(t *testing.T, text []byte) any {
	t.Helper()
	asJSON, err := yaml.YAMLToJSON(text)
	require.NoError(t, err)
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	require.NoError(t, err)
	return value
}

func TestSchemaDescribesEverySetting(t *testing.T) {
	t.Parallel()
	docs, err := fieldDocs()
	require.NoError(t, err)
	walk(specOf(Config{}), nil, func(s *spec, p path) {
		if s.name != "" {
			require.NotEmpty(t, docs[s.doc], p)
		}
	})
	text, err := Schema()
	require.NoError(t, err)
	var schema struct {
		Schema     string `json:"$schema"`
		Properties struct {
			Server struct {
				Properties map[string]struct {
					Description string `json:"description"`
					Default     any    `json:"default"`
				} `json:"properties"`
			} `json:"server"`
		} `json:"properties"`
	}
	require.NoError(t, json.Unmarshal(text, &schema))
	require.Equal(t, "https://json-schema.org/draft/2020-12/schema", schema.Schema)
	server := schema.Properties.Server.Properties
	require.Equal(t, "10m", server["timeout"].Default)
	require.InDelta(t, 33554432, server["max_body_bytes"].Default, 0)
	require.Equal(t, "Requests that one ingress holds at once. More are refused with 429.", server["max_in_flight"].Description)
}

func TestSchemaAcceptsTheExamples(t *testing.T) {
	t.Parallel()
	schema := compileSchema(t)
	files, err := filepath.Glob("../../deploy/examples/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, schema.Validate(instance(t, text)), file)
	}
}

// A file's keys and types are right for Load exactly when they are right for the
// schema.
func TestSchemaAndLoadAgree(t *testing.T) {
	t.Parallel()
	schema := compileSchema(t)
	good := []string{
		"", "server:", "server: {}", "providers:", "rate_limit:", "cache: {}", "auth: {keys: []}",
		"server: {timeout: 1h30m, max_body_bytes: 32MiB}", "server: {max_body_bytes: 1 MB}", "server: {max_body_bytes: 1.5KiB}",
		"server: {resume_window: '0', max_in_flight: 5.0}", "server: {max_in_flight: '${N}', timeout: '${D}', max_body_bytes: '${N}000'}",
		"providers: {a: {type: '${T}'}}", "providers: {1: {type: sim, sim: {failure_rate: 1}}}", "providers: {a: {type: sim, sim: {failure_rate: '${F}'}}}",
		"auth: {keys: [{name: a, key: '0123456789abcdef', expires_at: '2030-01-31T00:00:00Z'}]}",
		"auth: {keys: [{name: a, key: '0123456789abcdef', expires_at: '${E}'}]}",
		"observability: {log_level: debug, log_format: text}",
		"routing: {aliases: {GPT/4.1: m, 'a b': '${T}'}}", "routing: {aliases: , rules: []}",
		"providers: {a: {type: sim, capabilities: [{models: [m], images: false, tools: '${Y}', context_tokens: '${N}'}], prices: [{models: ['*'], input: 0.5}]}}",
		"providers: {a: {type: sim, breaker: {window: 1m, failures: '${N}'}}, b: {type: openai, base_url: 'http://b', headers: {OpenAI-Project: p}, model_map: {GPT-4.1: x/y}}}",
		"providers: {a: {type: sim}}\nrouting: {rules: [{name: r, when: {all: [{stream: true, headers: {X-Team: t}, endpoints: [chat]}]}, targets: [{provider: a, weight: 2}], fallback: [{on: ['${R}'], targets: [{provider: a, model: m}]}]}]}",
		"admin: {address: ':1', token: 0123456789abcdefg}",
	}
	for _, text := range good {
		_, err := read(text, "N=5", "D=5s", "T=sim", "Y=true", "R=timeout", "F=0.5", "E=2030-01-31T00:00:00Z")
		require.NoError(t, err, text)
		require.NoError(t, schema.Validate(instance(t, []byte(text))), text)
	}
	bad := []string{
		"x: 1", "server: {x: 1}", "rate_limit: {x: 1}", "cache: {x: 1}", "providers: {a: {type: sim, x: 1}}", "providers: {a: {type: sim, sim: {x: 1}}}",
		"auth: {keys: [{x: 1}]}", "queue: {tls: {x: 1}}", "server: []", "server: 1", "[]", "1", "providers: []", "auth: {keys: {}}", "auth: {keys: }",
		"auth: {keys: [1]}", "routing: {order: a}", "routing: {order: [1]}", "data_dir: 1", "data_dir: true", "data_dir:", "data_dir: {}",
		"server: {max_in_flight: '5'}", "server: {max_in_flight: 5.5}", "server: {max_in_flight: true}", "server: {max_in_flight: }",
		"server: {max_in_flight: 0}", "server: {max_in_flight: 1000001}", "server: {timeout: 5}", "server: {timeout: '5'}", "server: {timeout: -5s}",
		"server: {timeout: 5 s}", "server: {timeout: +5s}", "server: {timeout: .5s}", "server: {timeout: 1d}", "server: {max_body_bytes: 1 XB}", "server: {max_body_bytes: '1024'}",
		"server: {max_body_bytes: 1}", "providers: {a: {type: x}}", "providers: {A: {type: sim}}", "providers: {a: {type: sim, sim: {failure_rate: '1'}}}",
		"providers: {a: {type: sim, sim: {failure_rate: 2}}}", "observability: {log_level: x}", "observability: {log_format: 1}",
		"routing: {rules: {}}", "routing: {rules: [1]}", "routing: {rules: [{x: 1}]}", "routing: {rules: [{when: []}]}", "routing: {rules: [{when: {all: {}}}]}",
		"routing: {rules: [{when: {all: [{stream: 'true'}]}}]}", "routing: {rules: [{when: {all: [{stream: 1}]}}]}", "routing: {rules: [{when: {all: [{stream: }]}}]}",
		"routing: {rules: [{when: {any: [{endpoints: [audio]}]}}]}", "routing: {rules: [{when: {not: [{headers: {x: 1}}]}}]}", "routing: {rules: [{strategy: best}]}",
		"routing: {rules: [{fallback: [{on: [bored]}]}]}", "routing: {rules: [{fallback: [{on: timeout}]}]}", "routing: {rules: [{fallback: [{targets: [{provider: a, weight: 1}]}]}]}",
		"routing: {rules: [{targets: [{weight: -1}]}]}", "routing: {rules: [" + strings.Repeat("{}, ", 257) + "]}", "routing: {aliases: [a]}", "routing: {aliases: {a: 1}}",
		"routing: {rules: [{when: {all: [{headers: {" + manyKeys(65) + "}}]}}]}", "providers: {a: {type: sim, capabilities: [{context_tokens: 1.5}]}}",
		"providers: {a: {type: sim, capabilities: [{images: 0}]}}", "providers: {a: {type: sim, prices: [{input: -1}]}}", "providers: {a: {type: sim, breaker: {probes: 0}}}",
		"admin: {token: 1}", "admin: {x: 1}",
		"queue: {password: 12345}", "auth: {keys: [{name: a, key: 1234567890123456}]}",
	}
	for _, text := range bad {
		_, err := read(text)
		require.Error(t, err, text)
		require.Error(t, schema.Validate(instance(t, []byte(text))), text)
	}
}
