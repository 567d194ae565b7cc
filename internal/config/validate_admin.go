package config

import (
	"slices"

	"sluice/store"
)

// ownActors are names in the audit that no operator can have: who holds admin.token, and
// what Sluice calls itself.
var ownActors = []string{"admin", "cli", "serve"}

// ownToken reports whether admin.token is that of the person who calls a command, and not
// that of the one who holds admin.token where the configuration is served with.
func (v *validator) ownToken() bool {
	return v.opts.Command && environMap(v.opts.Environ)["SLUICE_ADMIN_TOKEN"] != ""
}

// operators checks that each operator can be told from every other, and from a client.
func (v *validator) operators() {
	a := v.config.Admin
	if len(a.Operators) > 0 && a.Address == "" {
		v.wrong("needs admin.address beside it", "admin", "operators")
	}
	names, tokens := make(map[string]bool), map[Secret]bool{a.Token: a.Token != "" && !v.ownToken()}
	for i, o := range a.Operators {
		at := path{"admin", "operators"}.at(i)
		switch {
		case len(o.Token) < minKeyLength:
			v.wrong("must have 16 characters or more: it lets an operator in", at.with("token")...)
		case !adminToken.MatchString(o.Token.Reveal()):
			v.wrong("must hold no space and nothing but ASCII: it travels in a header", at.with("token")...)
		case tokens[o.Token]:
			v.wrong("is another operator's too; nobody could tell who it was", at.with("token")...)
		case slices.ContainsFunc(v.config.Auth.Keys, func(k StaticKey) bool { return k.Key == o.Token }):
			v.wrong("is a client's key too; a client is no operator", at.with("token")...)
		}
		switch {
		case (store.Key{ID: "key", Name: o.Name, Tenant: "tenant"}).Validate() != nil:
			v.wrong("must not be empty, longer than 512 bytes or hold a control character", at.with("name")...)
		case names[o.Name]:
			v.wrong("is the name of an earlier operator; names are unique", at.with("name")...)
		case slices.Contains(ownActors, o.Name) || len(o.Name) > 4 && o.Name[:4] == "cli:":
			v.wrong("is what the audit calls somebody else", at.with("name")...)
		}
		names[o.Name], tokens[o.Token] = true, true
	}
}
