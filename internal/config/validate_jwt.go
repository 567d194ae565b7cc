package config

import (
	"cmp"
	"strings"

	"sluice/internal/token"
	"sluice/store"
)

// jwt checks whose tokens are taken. A fault here would let in whom nobody meant.
func (v *validator) jwt() {
	issuers := make(map[string]bool)
	for i, j := range v.config.Auth.JWT {
		at := path{"auth", "jwt"}.at(i)
		switch {
		case j.Issuer == "" || strings.TrimSpace(j.Issuer) != j.Issuer:
			v.wrong("must be the issuer exactly as its tokens have it in the claim iss, such as https://login.example.com/", at.with("issuer")...)
		case issuers[j.Issuer]:
			v.wrong("is an earlier issuer; each stands once", at.with("issuer")...)
		}
		issuers[j.Issuer] = true
		if len(j.Audiences) == 0 {
			v.wrong("must name at least one audience, or tokens that were made for others would be taken", at.with("audiences")...)
		}
		for n, audience := range j.Audiences {
			if audience == "" {
				v.wrong("must not be empty", at.with("audiences").at(n)...)
			}
		}
		if !token.ValidKeysURL(j.JWKSURL.Reveal()) {
			v.wrong("must be an https address, such as https://login.example.com/.well-known/jwks.json; http is only for this machine itself", at.with("jwks_url")...)
		}
		if len(j.Algorithms) == 0 {
			v.wrong("must name at least one algorithm; remove the key for RS256, ES256 and EdDSA", at.with("algorithms")...)
		}
		v.claims(j, at)
		if j.Limits != nil {
			v.holderLimits(*j.Limits, at.with("limits"))
		}
		v.caller(j, at)
	}
}

// claims checks the names of claims.
func (v *validator) claims(j JWT, at path) {
	for _, claim := range []struct {
		setting, name string
		required      bool
	}{
		{"subject_claim", j.SubjectClaim, true},
		{"tenant_claim", j.TenantClaim, true},
		{"models_claim", j.ModelsClaim, false},
		{"limits_claim", j.LimitsClaim, false},
	} {
		if (claim.required || claim.name != "") && !token.ValidClaim(claim.name) {
			v.wrong("must be the name of a claim without spaces; one inside another is written with points, such as org.id", at.with(claim.setting)...)
		}
	}
}

// caller checks what the entry gives to callers of its own: it must be fit for a key, or
// none of them would be let in.
func (v *validator) caller(j JWT, at path) {
	key := store.Key{ID: "-", Name: "-", Tenant: cmp.Or(j.Tenant, "-")}
	if j.Limits != nil {
		policy := j.Limits.Policy()
		key.Limits = &policy
	}
	for _, fault := range key.Faults() {
		if where := at.with(fault.Field); !v.faults.within(where) {
			v.wrong(fault.Problem, where...)
		}
	}
}
