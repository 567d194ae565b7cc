package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOperators(t *testing.T) {
	t.Parallel()
	const address = "admin: {address: '127.0.0.1:8081', "
	loaded, err := read(address + "operators: [{name: on-call, token: on-call-0123456789}, {name: second, token: second-0123456789, role: viewer}]}\n")
	require.NoError(t, err, "no token without a name is needed then")
	require.Equal(t, []Operator{
		{Name: "on-call", Token: "on-call-0123456789", Role: "admin"}, {Name: "second", Token: "second-0123456789", Role: "viewer"},
	}, loaded.Config.Admin.Operators)
	shown, err := Show(loaded.Config)
	require.NoError(t, err)
	require.NotContains(t, string(shown), "on-call-0123456789")

	for text, want := range map[string]string{
		"admin: {operators: [{name: on-call, token: on-call-0123456789}]}":                                                 "admin.operators: needs admin.address",
		address + "operators: [{name: on-call, token: short}]}":                                                            "operators[0].token: must have 16 characters",
		address + "operators: [{name: on-call, token: 'with a space 0123'}]}":                                              "operators[0].token: must hold no space",
		address + "operators: [{name: '', token: on-call-0123456789}]}":                                                    "operators[0].name: must not be empty",
		address + "operators: [{name: admin, token: on-call-0123456789}]}":                                                 "operators[0].name: is what the audit calls",
		address + "operators: [{name: 'cli:root', token: on-call-0123456789}]}":                                            "operators[0].name: is what the audit calls",
		address + "operators: [{name: on-call, token: on-call-0123456789, role: king}]}":                                   "operators[0].role",
		address + "token: on-call-0123456789, operators: [{name: on-call, token: on-call-0123456789}]}":                    "operators[0].token: is another operator's",
		address + "operators: [{name: a, token: on-call-0123456789}, {name: b, token: on-call-0123456789}]}":               "operators[1].token: is another operator's",
		address + "operators: [{name: a, token: on-call-0123456789}, {name: a, token: second-0123456789}]}":                "operators[1].name: is the name of an earlier",
		address + "operators: [{name: a, token: on-call-0123456789}]}\nauth: {keys: [{name: k, key: on-call-0123456789}]}": "operators[0].token: is a client's key",
		address + "}": "admin.token: must have 16 characters",
	} {
		_, err := read(text + "\n")
		require.ErrorContains(t, err, want, text)
		require.NotContains(t, err.Error(), "on-call-0123456789", "the token is not shown")
	}
}

// A command that asks an ingress has one token, its own, and needs nobody else's.
func TestACommandIsGivenNoOperators(t *testing.T) {
	t.Parallel()
	text := "admin: {address: '127.0.0.1:8081', token: \"${MINE}\", operators: [{name: on-call, token: \"${THEIRS}\"}]}\n"
	loaded, err := load([]byte(text), Options{Role: RoleOperator, Environ: []string{"MINE=mine-0123456789abc"}})
	require.NoError(t, err)
	require.Equal(t, Admin{Address: "127.0.0.1:8081", Token: "mine-0123456789abc"}, loaded.Config.Admin)
	_, err = load([]byte(text), Options{Role: RoleIngress, Environ: []string{"MINE=mine-0123456789abc"}})
	require.ErrorContains(t, err, "THEIRS")
}

// An operator shows their own token to the ingress by the variable that a server reads, too.
// That is no fault of the file which they look at.
func TestACommandIsCalledWithAnOperatorsToken(t *testing.T) {
	t.Parallel()
	const text = "admin: {address: '127.0.0.1:8081', token: theirs-0123456789, operators: [{name: on-call, token: on-call-0123456789}]}\n"
	own := []string{"SLUICE_ADMIN_TOKEN=on-call-0123456789"}
	for _, role := range []Role{RoleServe, RoleOperator, RoleAdmin} {
		_, err := load([]byte(text), Options{Role: role, Environ: own, Command: true})
		require.NoError(t, err, role)
	}
	_, err := load([]byte(text), Options{Role: RoleServe, Environ: own})
	require.ErrorContains(t, err, "is another operator's too", "whoever serves so could not tell them apart")
	twice := strings.Replace(text, "theirs-", "on-call-", 1)
	_, err = load([]byte(twice), Options{Role: RoleServe, Environ: []string{}, Command: true})
	require.ErrorContains(t, err, "is another operator's too", "and that is the file's own fault")
}
