package adminapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/webhook"
	"sluice/store"
)

type object = map[string]any

// at returns what stands in the document at the place, or nil.
func at(v any, place ...string) any {
	for _, word := range place {
		m, ok := v.(object)
		if !ok {
			return nil
		}
		v = m[word]
	}
	return v
}

func document(t *testing.T) object {
	t.Helper()
	text, err := adminapi.Document()
	require.NoError(t, err)
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	require.NoError(t, err)
	return doc.(object)
}

// each calls fn for every object of the document, with its place.
func each(v any, place string, fn func(place string, o object)) {
	switch v := v.(type) {
	case object:
		fn(place, v)
		for _, name := range slices.Sorted(maps.Keys(v)) {
			each(v[name], place+"/"+name, fn)
		}
	case []any:
		for i := range v {
			each(v[i], fmt.Sprintf("%s/%d", place, i), fn)
		}
	}
}

func TestTheDocumentIsOpenAPI(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/structure.yaml")
	require.NoError(t, err)
	asJSON, err := yaml.YAMLToJSON(text)
	require.NoError(t, err)
	structure, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	require.NoError(t, err)
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.AssertFormat()
	require.NoError(t, compiler.AddResource("structure.json", structure))
	schema, err := compiler.Compile("structure.json")
	require.NoError(t, err)
	doc := document(t)
	require.NoError(t, schema.Validate(doc))

	used := make(map[string]bool)
	each(doc, "#", func(place string, o object) {
		if ref, ok := o["$ref"].(string); ok {
			require.NotNil(t, at(doc, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...), "%s: %s leads nowhere", place, ref)
			used[ref] = true
		}
	})
	for _, kind := range []string{"parameters", "headers", "responses", "schemas"} {
		for name := range at(doc, "components", kind).(object) {
			require.True(t, used["#/components/"+kind+"/"+name], "nothing refers to %s/%s", kind, name)
		}
	}
	require.NotNil(t, at(doc, "components", "securitySchemes", "operator"))
}

var placeholders = regexp.MustCompile(`\{([a-z_]+)\}`)

func TestOperationsAreWhole(t *testing.T) {
	t.Parallel()
	doc := document(t)
	tags, ids := make(map[string]bool), make(map[string]bool)
	for _, tag := range doc["tags"].([]any) {
		tags[at(tag, "name").(string)] = false
	}
	for template, item := range at(doc, "paths").(object) {
		inPath := func(v any) (names []string) {
			list, _ := v.([]any)
			for _, p := range list {
				if ref, ok := at(p, "$ref").(string); ok {
					p = at(doc, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
				}
				if at(p, "in") == "path" {
					names = append(names, fmt.Sprint(at(p, "name")))
				}
			}
			return names
		}
		var want []string
		for _, found := range placeholders.FindAllStringSubmatch(template, -1) {
			want = append(want, found[1])
		}
		require.ElementsMatch(t, want, inPath(at(item, "parameters")), template)
		for method, op := range item.(object) {
			if method == "parameters" {
				continue
			}
			id := fmt.Sprint(at(op, "operationId"))
			require.False(t, ids[id], "%s stands for two operations", id)
			ids[id] = true
			require.Empty(t, inPath(at(op, "parameters")), id)
			tag := at(op, "tags").([]any)[0].(string)
			require.Contains(t, tags, tag, id)
			tags[tag] = true
			looks := method == "get" && id != "showDeadLetter" || id == "explainRoute"
			require.Equal(t, !looks, at(op, "responses", "403") != nil, "%s: viewers may look, and that alone", id)
			require.Equal(t, at(op, "requestBody") != nil || id == "showDeadLetter", at(op, "responses", "413") != nil, id)
		}
	}
	require.NotContains(t, slices.Collect(maps.Values(tags)), false, "a tag without an operation")
}

// The schemas of the document and the types that are written and read are the same members,
// and what is always written is what is required.
func TestSchemasAreTheTypes(t *testing.T) {
	t.Parallel()
	schemas := at(document(t), "components", "schemas").(object)
	types := []any{
		adminapi.Key{},
		adminapi.ReplacedKey{},
		adminapi.KeyList{},
		adminapi.Tenant{},
		adminapi.TenantList{},
		adminapi.AuditEntry{},
		adminapi.AuditList{},
		adminapi.UsageReport{},
		adminapi.UsageRow{},
		adminapi.Provider{},
		adminapi.ProviderList{},
		adminapi.BreakersReset{},
		adminapi.Lane{},
		adminapi.Queue{},
		adminapi.QueueList{},
		adminapi.PurgedQueue{},
		adminapi.DeadLetter{},
		adminapi.DeadLetterList{},
		adminapi.LettersDone{},
		adminapi.LetterRequeued{},
		adminapi.LetterFailed{},
		adminapi.Cache{},
		adminapi.CacheLevel{},
		adminapi.CachePurged{},
		adminapi.Webhook{},
		adminapi.WebhookList{},
		adminapi.TestWebhook{},
		adminapi.TenantSecretShown{},
		adminapi.DeliveryList{},
		adminapi.Delivery{},
		adminapi.Attempt{},
		adminapi.ExplainResponse{},
		adminapi.Candidate{},
		adminapi.Excluded{},
		adminapi.ConfigState{},
		adminapi.ConfigReload{},
		adminapi.ConfigFault{},
		adminapi.LimitsShown{},
		adminapi.LimitScope{},
		adminapi.LimitWindow{},
		adminapi.LimitGauge{},
		adminapi.LimitBudget{},
		adminapi.LimitSpend{},
		limits.Limits{},
		limits.Budget{},
		limits.ModelLimits{},
		adminapi.CreateKey{},
		adminapi.UpdateKey{},
		adminapi.RotateKey{},
		adminapi.PutTenant{},
		adminapi.UpdateTenant{},
		adminapi.ChangeProvider{},
		adminapi.ResumeProvider{},
		adminapi.PurgeQueue{},
		adminapi.ManyLetters{},
		adminapi.CreateWebhook{},
		adminapi.RotateWebhook{},
		adminapi.Redeliver{},
		adminapi.TenantSecret{},
		adminapi.ExplainRequest{},
	}
	described := make(map[string]bool)
	for _, v := range types {
		typ := reflect.TypeOf(v)
		described[typ.Name()] = true
		members, required := membersOf(typ)
		schema := schemas[typ.Name()]
		properties, _ := at(schema, "properties").(object)
		require.ElementsMatch(t, members, slices.Collect(maps.Keys(properties)), typ.Name())
		listed, _ := at(schema, "required").([]any)
		require.ElementsMatch(t, required, listed, typ.Name())
	}
	for name, schema := range schemas {
		other := []string{"Error", "ConfigError", "Nothing", "Document"} // these have no type of their own
		require.True(t, at(schema, "type") != "object" || described[name] || slices.Contains(other, name), "no type is held against %s", name)
	}
}

// What may be null by the document is read as null, and nothing else is.
func TestNullIsTakenWhereTheDocumentHasIt(t *testing.T) {
	t.Parallel()
	doc := document(t)
	var nullable func(schema any) bool
	nullable = func(schema any) bool {
		if ref, ok := at(schema, "$ref").(string); ok && nullable(at(doc, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)) {
			return true
		}
		kinds, _ := at(schema, "type").([]any)
		either, _ := at(schema, "anyOf").([]any)
		return at(schema, "type") == "null" || slices.Contains(kinds, any("null")) || slices.ContainsFunc(either, nullable)
	}
	taken := make(map[string]bool)
	for _, into := range []any{
		&adminapi.CreateKey{}, &adminapi.UpdateKey{}, &adminapi.RotateKey{}, &adminapi.PutTenant{}, &adminapi.UpdateTenant{},
		&adminapi.ChangeProvider{}, &adminapi.ResumeProvider{}, &adminapi.PurgeQueue{}, &adminapi.ManyLetters{}, &adminapi.ExplainRequest{},
		&adminapi.CreateWebhook{}, &adminapi.RotateWebhook{}, &adminapi.Redeliver{}, &adminapi.TenantSecret{},
		&limits.Limits{}, &limits.ModelLimits{}, &limits.Budget{},
	} {
		typ := reflect.TypeOf(into).Elem()
		for name, schema := range at(doc, "components", "schemas", typ.Name(), "properties").(object) {
			err := adminapi.Decode([]byte(`{"`+name+`":null}`), into)
			if nullable(schema) {
				require.NoError(t, err, "%s.%s", typ.Name(), name)
				taken[typ.Name()+"."+name] = true
				continue
			}
			require.EqualError(t, err, `"`+name+`" must not be null.`, typ.Name())
		}
	}
	require.ElementsMatch(t, []string{
		"CreateKey.limits", "UpdateKey.limits", "UpdateKey.models", "UpdateKey.expires_at", "PutTenant.limits", "UpdateTenant.limits",
	}, slices.Collect(maps.Keys(taken)))
}

func membersOf(typ reflect.Type) (members []string, required []any) {
	for _, field := range reflect.VisibleFields(typ) {
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if field.Anonymous || name == "-" {
			continue
		}
		members = append(members, name)
		if !strings.Contains(options, "omit") {
			required = append(required, name)
		}
	}
	return members, required
}

// What may be chosen from is what the packages know that say so.
func TestEnumsAreWhole(t *testing.T) {
	t.Parallel()
	schemas := at(document(t), "components", "schemas")
	for name, want := range map[string]any{
		"UsageGroup": store.UsageGroups, "EventType": webhook.Types(),
		"KeyState":      []store.KeyState{store.KeyActive, store.KeyExpired, store.KeyRevoked},
		"DeliveryState": []store.DeliveryState{store.DeliveryPending, store.DeliveryDelivered, store.DeliveryFailed},
		"LaneName":      []inference.Lane{inference.LaneInteractive, inference.LaneBackground, inference.LaneBatch},
	} {
		wanted, err := json.Marshal(want)
		require.NoError(t, err)
		got, err := json.Marshal(at(schemas, name, "enum"))
		require.NoError(t, err)
		require.JSONEq(t, string(wanted), string(got), name)
	}
}

// What is kept of a request by the document is all that the document says.
func TestOperationsHaveTheirParametersAndBodies(t *testing.T) {
	t.Parallel()
	all, err := adminapi.Operations()
	require.NoError(t, err)
	require.Equal(t, adminapi.Operation{Query: map[string]bool{"tenant": true, "state": true, "limit": true, "after": true}}, all["GET /admin/v1/keys"])
	require.Equal(t, adminapi.Operation{Query: map[string]bool{"model": true}, Body: adminapi.EmptyBody}, all["POST /admin/v1/providers/{provider}/breakers/reset"])
	require.Equal(t, adminapi.Operation{Query: map[string]bool{}, Body: adminapi.WholeBody}, all["PATCH /admin/v1/keys/{key}"])
	require.NotContains(t, all, "PARAMETERS /admin/v1/keys/{key}")
}

func TestAMemberThatStandsThereTwiceIsFound(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"a":1,"b":{"a":1},"c":[{"a":1},{"a":1}]}`: "", `"a"`: "", `[]`: "", `{}`: "",
		`{"a":1,"b":2,"a":1}`: "a", `{"a":{"b":[0,[{"c":1,"c":2}]]}}`: "a.b[1][0].c", `[{"x":{},"x":[]}]`: "[0].x",
		`{"a":1,"\u0061":2}`: "a", `{"":1,"":2}`: "",
	} {
		at, found := adminapi.Doubled([]byte(text))
		require.Equal(t, want, at, text)
		require.Equal(t, want != "" || strings.HasPrefix(text, `{"":`), found, text)
	}
	deep := strings.Repeat(`{"a":`, 9_000) + `{"b":1,"b":1}` + strings.Repeat("}", 9_000)
	_, found := adminapi.Doubled([]byte(deep))
	require.True(t, found)
}

// The bounds that the document names are those that are kept.
func TestBoundsAreThoseThatAreKept(t *testing.T) {
	t.Parallel()
	components := at(document(t), "components")
	for place, want := range map[string]int{
		"parameters Limit schema maximum": store.MaxPage - 1, "parameters Limit schema default": store.DefaultPage,
		"schemas ModelNames maxItems": store.MaxModels, "schemas ModelNames items maxLength": store.MaxTextBytes,
		"schemas Limits properties models maxItems": limits.MaxModels, "schemas Key properties replaced maxItems": store.MaxReplaced,
		"schemas CreateKey properties name maxLength": adminapi.MaxName, "schemas CreateWebhook properties url maxLength": webhook.MaxURLBytes,
	} {
		require.Equal(t, fmt.Sprint(want), fmt.Sprint(at(components, strings.Fields(place)...)), place)
	}
}
