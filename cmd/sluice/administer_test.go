package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/limits"
)

// Without admin.address the commands work on the database themselves.
func TestKeysAreAdministeredAtTheDatabase(t *testing.T) {
	t.Setenv("SLUICE_DATA_DIR", t.TempDir())
	do := func(args ...string) string {
		t.Helper()
		code, out, errs := sluice(t, args...)
		require.Zero(t, code, errs)
		return out
	}
	do("migrate")
	shown := func() (key adminapi.Key) {
		require.NoError(t, json.Unmarshal([]byte(do("keys", "show", "ci")), &key))
		return key
	}
	first := do("keys", "create", "ci", "--queued", "4", "--budget-week", "0.000000001")
	require.Equal(t, &limits.Limits{Queued: 4, Budget: limits.Budget{Week: 1}}, shown().Limits)
	file := filepath.Join(t.TempDir(), "limits.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"concurrent": 5, "queued": 6}`), 0o600))
	do("keys", "update", "ci", "--limits", file, "--queued", "7", "--expires", "1h")
	require.Equal(t, &limits.Limits{Concurrent: 5, Queued: 7}, shown().Limits, "a file is all limits, and a flag goes before it")
	require.NotNil(t, shown().ExpiresAt)
	do("keys", "update", "ci", "--concurrent", "0", "--never-expires", "--models", "m*")
	require.Equal(t, &limits.Limits{Queued: 7}, shown().Limits)
	require.Nil(t, shown().ExpiresAt)
	do("keys", "update", "ci", "--no-limits", "--models", "")
	require.Nil(t, shown().Limits)
	require.Empty(t, shown().Models)
	second := do("keys", "rotate", "ci")
	require.NotEqual(t, first, second)
	require.Len(t, shown().Replaced, 1)
	require.Len(t, strings.Split(strings.TrimSpace(do("keys", "list", "--json", "--state", "active")), "\n"), 1)
	require.Empty(t, do("keys", "list", "--json", "--tenant", "nobody's"))

	do("tenants", "set", "a/b", "--concurrent", "3")
	require.Contains(t, do("tenants", "set", "a/b", "--disable"), `disabled, its limits: {"concurrent":3}`)
	require.Contains(t, do("tenants", "show", "a/b"), `"disabled": true`)
	require.Contains(t, do("tenants", "list", "--json"), `"name":"a/b"`)
	code, _, errs := sluice(t, "tenants", "delete", "a/b")
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "sluice tenants set a/b --enable")
	do("tenants", "set", "a/b", "--enable")
	do("tenants", "delete", "a/b")
	code, _, errs = sluice(t, "tenants", "show", "a/b")
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "tenants list")
	code, _, errs = sluice(t, "keys", "update", "ci", "--no-limits", "--queued", "1")
	require.Equal(t, exitUsage, code, errs)
	code, _, errs = sluice(t, "keys", "list", "--state", "happy")
	require.Equal(t, exitFailure, code)
	require.Equal(t, "sluice: state must be active, expired or revoked.\n", errs, "said plainly: nobody was asked but this process")

	all := do("audit", "list", "--json")
	require.Equal(t, 9, strings.Count(all, "\n"))
	for line := range strings.Lines(all) {
		var e adminapi.AuditEntry
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		require.Equal(t, cliActor(), e.Actor)
	}
	require.Equal(t, 3, strings.Count(do("audit", "list", "--limit", "2"), "\n"))
	require.NotContains(t, all, strings.TrimSpace(second))
}

// A list goes on over as many pages as it has.
func TestListsAreShownToTheirEnd(t *testing.T) {
	t.Setenv("SLUICE_DATA_DIR", t.TempDir())
	code, _, errs := sluice(t, "migrate")
	require.Zero(t, code, errs)
	for range pageSize + 1 {
		code, _, errs := sluice(t, "tenants", "set", "again", "--queued", "1")
		require.Zero(t, code, errs)
	}
	for most, want := range map[string]int{"1000": pageSize + 1, "51": pageSize + 1, "50": pageSize, "7": 7} {
		_, out, _ := sluice(t, "audit", "list", "--json", "--limit", most)
		require.Equal(t, want, strings.Count(out, "\n"))
	}
}

func TestChangesAreShownInALine(t *testing.T) {
	t.Parallel()
	for want, c := range map[string][2]string{
		`a: 1, b: {"c":2}`:               {``, `{"b":{"c":2},"a":1}`},
		`a: 1 → 2, b: nothing → 3`:       {`{"a":1,"same":0}`, `{"a":2,"b":3,"same":0}`},
		`a: 1 → nothing`:                 {`{"a":1}`, ``},
		`-`:                              {`{"a":1}`, `{"a":1}`},
		`limits: {"queued":1} → nothing`: {`{"limits":{"queued":1}}`, `{}`},
	} {
		require.Equal(t, want, changeText(json.RawMessage(c[0]), json.RawMessage(c[1])))
	}
	require.Equal(t, "-", changeText(json.RawMessage(`[1]`), nil))
	was := json.RawMessage(`{"hash":"old"}`)
	for action, want := range map[string]string{
		"config.reload": `hash: "old"`, "dead_letter.requeue": `hash: "old"`, "tenant.delete": `hash: "old" → nothing`, "dead_letter.drop": `hash: "old" → nothing`,
	} {
		require.Equal(t, want, changeOf(adminapi.AuditEntry{Action: action, Before: was, After: json.RawMessage("null")}), action)
	}
}

func TestABodyIsShownAsTextIfItIsOne(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{"": `{}`, "{\"a\":\"<ä>\"}": `{"body":"{\"a\":\"<ä>\"}"}`, "\xff\x00": `{"body_base64":"/wA="}`} {
		var b strings.Builder
		require.NoError(t, printJSON(&b, readable(adminapi.DeadLetter{ID: "dead_1", Body: []byte(body)})))
		var shown map[string]any
		require.NoError(t, json.Unmarshal([]byte(b.String()), &shown))
		for name := range shown {
			if !strings.HasPrefix(name, "body") {
				delete(shown, name)
			}
		}
		got, err := json.Marshal(shown)
		require.NoError(t, err)
		require.JSONEq(t, want, string(got))
		require.NotContains(t, b.String(), "u003c")
	}
}

// A command about many letters goes on behind those that stay, until it has done what it was
// asked for.
func TestManyLettersAreGoneThroughToTheEnd(t *testing.T) {
	t.Parallel()
	var asked []adminapi.ManyLetters
	answers := []adminapi.LettersDone{
		{Failed: make([]adminapi.LetterFailed, 2), More: true, Next: "dead_9"},
		{Requeued: make([]adminapi.LetterRequeued, 1), Failed: make([]adminapi.LetterFailed, 1), More: true, Next: "dead_7"},
		{Requeued: make([]adminapi.LetterRequeued, 1), More: true, Next: "dead_5"},
	}
	ask := func(_, _ string, request, answer any) error {
		asked = append(asked, request.(adminapi.ManyLetters))
		*answer.(*adminapi.LettersDone) = answers[len(asked)-1]
		return nil
	}
	all, err := changeEach(ask, adminapi.RequeuePath, adminapi.ManyLetters{Provider: "up", Limit: 2})
	require.NoError(t, err)
	require.Equal(t, []adminapi.ManyLetters{
		{Provider: "up", Limit: 2}, {Provider: "up", Limit: 2, Before: "dead_9"}, {Provider: "up", Limit: 1, Before: "dead_7"},
	}, asked)
	require.Len(t, all.Requeued, 2)
	require.Len(t, all.Failed, 3)
	require.True(t, all.More)
}
