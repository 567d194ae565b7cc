package config

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"sluice/internal/limits"
	"sluice/store"
)

// limits checks who may take how much.
func (v *validator) limits() {
	r := v.config.RateLimit
	v.holderLimits(r.Key, path{"rate_limit", "key"})
	v.holderLimits(r.Tenant, path{"rate_limit", "tenant"})
	v.modelLimits(r.Models, path{"rate_limit", "models"})
	for i, k := range v.config.Auth.Keys {
		if k.Limits != nil {
			v.holderLimits(*k.Limits, path{"auth", "keys"}.at(i).with("limits"))
		}
	}
	v.tenants()
}

// tenants checks that each tenant is named once, and as a key can name it.
func (v *validator) tenants() {
	named := make(map[string]bool)
	for i, t := range v.config.Auth.Tenants {
		at := path{"auth", "tenants"}.at(i)
		switch problem := tenantFault(t.Name); {
		case problem != "":
			v.wrong(problem, at.with("name")...)
		case named[t.Name]:
			v.wrong("is the name of an earlier tenant; write all its limits there", at.with("name")...)
		}
		named[t.Name] = true
		v.holderLimits(t.Limits, at.with("limits"))
	}
}

// tenantFault returns what is wrong with a tenant's name, if anything is.
func tenantFault(name string) string {
	switch {
	case name == "":
		return "is missing; write the name that keys have as their tenant"
	case len(name) > store.MaxTextBytes || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return "must be UTF-8 of at most 512 bytes without control characters, as a key's tenant is"
	}
	return ""
}

// holderLimits checks the limits of one holder.
func (v *validator) holderLimits(l Limits, at path) {
	v.modelLimits(l.Models, at.with("models"))
	bounds := l.Policy()
	if l.OnLimit == string(limits.Queue) && bounds.IsZero() {
		v.wrong("does nothing without a limit beside it, such as requests_per_minute: 60", at.with("on_limit")...)
	}
}

// modelLimits checks entries of which the first that covers a model counts. One without
// any bound is no fault: it exempts its models from those behind it.
func (v *validator) modelLimits(entries []ModelLimits, at path) {
	var earlier []string
	for i, m := range entries {
		v.models(m.Models, earlier, at.at(i))
		earlier = append(earlier, m.Models...)
	}
}
