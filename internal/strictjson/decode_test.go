package strictjson

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// order is what the tests read: something of each kind that there is.
type order struct {
	Name   string            `json:"name,omitempty"`
	Count  int64             `json:"count,omitempty"`
	Urgent *bool             `json:"urgent,omitempty"`
	Due    *time.Time        `json:"due,omitempty"`
	Price  cents             `json:"price,omitempty"`
	Tags   []string          `json:"tags,omitempty"`
	Notes  map[string]string `json:"notes,omitempty"`
	Items  []item            `json:"items,omitempty"`
	Ship   orNull[address]   `json:"ship,omitzero"`
	Refund orNull[cents]     `json:"refund,omitzero"`
	Secret string            `json:"-"`
}

type item struct {
	Article *article `json:"article,omitempty"`
	Pieces  int      `json:"pieces,omitempty"`
}

type article struct {
	Number string `json:"number"`
}

type address struct {
	Street string   `json:"street"`
	Floors []uint8  `json:"floors,omitempty"`
	Via    *address `json:"via,omitempty"`
}

// cents reads itself.
type cents int64

func (c *cents) UnmarshalJSON(data []byte) error {
	var text string
	if json.Unmarshal(data, &text) != nil || !strings.HasSuffix(text, "c") {
		return errors.New(`is no price, such as "7c"`)
	}
	*c = cents(len(text))
	return nil
}

// orNull tells null from what is not there.
type orNull[T any] struct {
	given bool
	value *T
}

func (o *orNull[T]) UnmarshalJSON(data []byte) error {
	o.given = true
	return json.Unmarshal(data, &o.value)
}

func (orNull[T]) Inner() reflect.Type { return reflect.TypeFor[T]() }

func TestWhatIsKnownIsRead(t *testing.T) {
	t.Parallel()
	var got order
	require.NoError(t, Decode([]byte(` {"name":"n","count":-7,"urgent":true,"due":"2030-01-02T03:04:05Z","price":"12c","tags":["a","b"],"notes":{"k":"v"},
		"items":[{"article":{"number":"1"},"pieces":2},{}],"ship":{"street":"s","floors":[],"via":{"street":"t"}},"refund":"1c"} `), &got))
	urgent, due, refund := true, time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), cents(2)
	require.Equal(t, order{
		Name: "n", Count: -7, Urgent: &urgent, Due: &due, Price: 3, Tags: []string{"a", "b"}, Notes: map[string]string{"k": "v"},
		Items:  []item{{&article{"1"}, 2}, {}},
		Ship:   orNull[address]{true, &address{Street: "s", Floors: []uint8{}, Via: &address{Street: "t"}}},
		Refund: orNull[cents]{true, &refund},
	}, got)
	require.NoError(t, Decode([]byte(`{"name":"another"}`), &got))
	require.Equal(t, []any{"another", int64(-7)}, []any{got.Name, got.Count}, "what is not given stays")
}

// Null is nothing that anybody means but where a Wrapper tells what it means.
func TestNullIsTakenWhereItIsToldApart(t *testing.T) {
	t.Parallel()
	var got order
	require.NoError(t, Decode([]byte(`{"ship":null,"refund":null}`), &got))
	require.Equal(t, order{Ship: orNull[address]{given: true}, Refund: orNull[cents]{given: true}}, got)
	for body, at := range map[string]string{
		`{"name":null}`: "name", `{"count":null}`: "count", `{"urgent":null}`: "urgent", `{"due":null}`: "due", `{"price":null}`: "price",
		`{"tags":null}`: "tags", `{"tags":["a",null]}`: "tags[1]", `{"notes":null}`: "notes", `{"notes":{"a":"b","k": null }}`: "notes.k",
		`{"items":null}`: "items", `{"items":[{},null]}`: "items[1]", `{"items":[{"article":null}]}`: "items[0].article",
		`{"items":[{"article":{"number":null}}]}`: "items[0].article.number", `{"items":[{"pieces":null}]}`: "items[0].pieces",
		`{"ship":{"street":null}}`: "ship.street", `{"ship":{"floors":[1,null]}}`: "ship.floors[1]", `{"ship":{"via":null}}`: "ship.via",
	} {
		err := Decode([]byte(body), new(order))
		wrong, named := errors.AsType[*FieldError](err)
		require.True(t, named, "%s: %v", body, err)
		require.Equal(t, FieldError{at, `"` + at + `" must not be null.`}, *wrong, body)
	}
}

func TestTheMemberAtFaultIsNamed(t *testing.T) {
	t.Parallel()
	const when = ` must be a time as RFC 3339 has it, such as "2030-01-02T15:04:05Z".`
	for body, want := range map[string]FieldError{
		`[]`:                                  {"", "A JSON object is expected."},
		`null`:                                {"", "A JSON object is expected."},
		`7`:                                   {"", "A JSON object is expected."},
		`{"Name":"n"}`:                        {"Name", `There is no field "Name".`},
		`{"":1}`:                              {"", `There is no field "".`},
		`{"Secret":"s"}`:                      {"Secret", `There is no field "Secret".`},
		`{"-":"h"}`:                           {"-", `There is no field "-".`},
		`{"nmae":null}`:                       {"nmae", `There is no field "nmae".`},
		`{"items":[{},{"article":{"":1}}]}`:   {"items[1].article.", `There is no field "items[1].article.".`},
		`{"ship":{"via":{"via":{"town":1}}}}`: {"ship.via.via.town", `There is no field "ship.via.via.town".`},
		`{"name":1}`:                          {"name", `"name" must not be a JSON number.`},
		`{"count":"1"}`:                       {"count", `"count" must not be a JSON string.`},
		`{"count":1.5}`:                       {"count", `"count" must not be a JSON number that is not whole, or too large.`},
		`{"count":9223372036854775808}`:       {"count", `"count" must not be a JSON number that is not whole, or too large.`},
		`{"urgent":"true"}`:                   {"urgent", `"urgent" must not be a JSON string.`},
		`{"due":"tomorrow"}`:                  {"due", `"due"` + when},
		`{"due":{}}`:                          {"due", `"due"` + when},
		`{"price":7}`:                         {"price", `"price" is no price, such as "7c".`},
		`{"refund":"7"}`:                      {"refund", `"refund" is no price, such as "7c".`},
		`{"tags":"a"}`:                        {"tags", `"tags" must not be a JSON string.`},
		`{"tags":["a",{}]}`:                   {"tags[1]", `"tags[1]" must not be a JSON object.`},
		`{"notes":{"k":[]}}`:                  {"notes.k", `"notes.k" must not be a JSON array.`},
		`{"ship":true}`:                       {"ship", `"ship" must not be a JSON bool.`},
		`{"ship":{"floors":[1,256]}}`:         {"ship.floors[1]", `"ship.floors[1]" must not be a JSON number that is not whole, or too large.`},
		`{"items":[{"pieces":[]},{}]}`:        {"items[0].pieces", `"items[0].pieces" must not be a JSON array.`},
	} {
		err := Decode([]byte(body), new(order))
		wrong, named := errors.AsType[*FieldError](err)
		require.True(t, named, "%s: %v", body, err)
		require.Equal(t, want, *wrong, body)
	}
	for _, body := range []string{``, `{`, `{"name":"n"} {}`, `{"name":'n'}`, `{,}`} {
		err := Decode([]byte(body), new(order))
		require.Error(t, err, body)
		_, named := errors.AsType[*FieldError](err)
		require.False(t, named, "%q is no JSON at all", body)
	}
	err := Decode([]byte(`{"`+strings.Repeat("x", 10_000)+`":1}`), new(order))
	require.Error(t, err)
	require.Less(t, len(err.Error()), 2*nameMost, "a name is not repeated at any length")
}

// FuzzDecode holds every text against encoding/json, which is laxer: what is read here is
// what it reads, and has nothing that it would pass over.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{"name":"n","count":1,"tags":["a"],"notes":{"":"v"},"items":[{"article":{"number":"1"}}],"ship":{"street":"s"},"refund":"1c"}`,
		`{"ship":null,"refund":null}`, `{"name":null}`, `{"Name":"x"}`, `{"":0}`, `[]`, `null`, `{"items":[null]}`, `{"due":"2030-01-02T03:04:05Z"}`, "{\"name\":\"\xff\"}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var got, lax order
		if err := Decode(text, &got); err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		var members map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(text, &members))
		for name, value := range members {
			_, known := memberOf(reflect.TypeFor[order](), name)
			require.True(t, known, "%q", name)
			if string(value) == null {
				require.Contains(t, []string{"ship", "refund"}, name)
			}
		}
		once, err := json.Marshal(members) // of a member that stands there twice the last counts
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(once, &lax), "%q", text)
		require.Equal(t, lax, got, "%q", text)
	})
}
