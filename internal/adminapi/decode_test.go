package adminapi

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/limits"
)

func TestWhatIsNotGivenIsNotNull(t *testing.T) {
	t.Parallel()
	var req UpdateKey
	require.NoError(t, Decode([]byte(`{"limits":null,"models":["m"],"expires_at":"2030-01-02T03:04:05Z"}`), &req))
	models, end := []string{"m"}, time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	require.Equal(t, UpdateKey{Limits: Given[limits.Limits](nil), Models: Given(&models), ExpiresAt: Given(&end)}, req)
	text, err := json.Marshal(req)
	require.NoError(t, err)
	require.JSONEq(t, `{"limits":null,"models":["m"],"expires_at":"2030-01-02T03:04:05Z"}`, string(text))
	req = UpdateKey{}
	require.NoError(t, Decode(nil, &req))
	require.Equal(t, UpdateKey{}, req)
}

func TestDecodeNamesTheFieldAtFault(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`[]`:                           "",
		`null`:                         "",
		`"x"`:                          "",
		`{"nmae":"x"}`:                 "nmae",
		`{"Name":"x"}`:                 "Name",
		`{"":{"name":"x"}}`:            "",
		`{"name":7}`:                   "name",
		`{"models":"m"}`:               "models",
		`{"expires_at":"soon"}`:        "expires_at",
		`{"limits":[]}`:                "limits",
		`{"limits":{"rpm":1}}`:         "limits.rpm",
		`{"limits":{"queued":"many"}}`: "limits.queued",
		`{"limits":{"queued":1.5}}`:    "limits.queued",
		`{"limits":{"budget":{"day":1,"year":2}}}`:               "limits.budget.year",
		`{"limits":{"budget":{"day":-1}}}`:                       "limits.budget.day",
		`{"limits":{"models":[{"models":["m"]},{"modles":[]}]}}`: "limits.models[1].modles",
	} {
		var req UpdateKey
		err := Decode([]byte(body), &req)
		wrong, ok := errors.AsType[*FieldError](err)
		require.True(t, ok, "%s: %v", body, err)
		require.Equal(t, want, wrong.Field, body)
		require.NotEmpty(t, wrong.Problem)
	}
	var req UpdateKey
	for _, body := range []string{`{`, `{} {}`, "\xff"} {
		err := Decode([]byte(body), &req)
		require.Error(t, err)
		_, named := errors.AsType[*FieldError](err)
		require.False(t, named, "it is no JSON at all")
	}
}

// What is wrong is said of the very field, in words that whoever wrote it understands.
func TestDecodeSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"limits":{"budget":{"day":"abc"}}}`:                                   `"limits.budget.day" is no amount of money, such as 12.50 with at most nine decimals.`,
		`{"limits":{"budget":{"day":1,"week":"x"}}}`:                            `"limits.budget.week" is no amount of money, such as 12.50 with at most nine decimals.`,
		`{"limits":{"models":[{"models":["m"],"queued":"a"}]}}`:                 `"limits.models[0].queued" must not be a JSON string.`,
		`{"limits":{"models":[{"models":["m"]},{"models":["m"],"queued":{}}]}}`: `"limits.models[1].queued" must not be a JSON object.`,
		`{"limits":{"models":[{"models":["m",7]}]}}`:                            `"limits.models[0].models[1]" must not be a JSON number.`,
		`{"limits":{"models":[{"models":["m"],"budget":{"month":[]}}]}}`:        `"limits.models[0].budget.month" is no amount of money, such as 12.50 with at most nine decimals.`,
		`{"limits":{"queued":1.5}}`:                                             `"limits.queued" must not be a JSON number that is not whole, or too large.`,
		`{"limits":{"on_limit":true}}`:                                          `"limits.on_limit" must not be a JSON bool.`,
		`{"limits":[]}`:                                                         `"limits" must not be a JSON array.`,
		`{"expires_at":"tomorrow"}`:                                             `"expires_at" must be a time as RFC 3339 has it, such as "2030-01-02T15:04:05Z".`,
		`{"expires_at":17}`:                                                     `"expires_at" must be a time as RFC 3339 has it, such as "2030-01-02T15:04:05Z".`,
		`{"nmae":"x"}`:                                                          `There is no field "nmae".`,
		`[]`:                                                                    `A JSON object is expected.`,
	} {
		var req UpdateKey
		require.EqualError(t, Decode([]byte(body), &req), want, body)
	}
	var req UpdateKey
	err := Decode([]byte(`{"`+strings.Repeat("x", 10_000)+`":1}`), &req)
	require.Error(t, err)
	require.Less(t, len(err.Error()), 300, "a name is not repeated at any length")
}
