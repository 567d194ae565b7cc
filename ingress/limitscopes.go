package ingress

import (
	"net/url"
	"slices"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/routing"
	"sluice/store"
)

// LimitSettings say who may take how much. The zero value limits nobody.
type LimitSettings struct {
	FailOpen      bool  // while the counters are out of reach requests pass; else they are refused
	DefaultOutput int64 // tokens that an answer is taken to need when nothing bounds it

	Key, Tenant limits.Limits             // of the keys and tenants whose own bound nothing
	Tenants     map[string]*limits.Limits // of the configuration; they come before TenantLimits
	Models      []limits.ModelLimits      // whoever asks; the first entry that covers a model counts, for each model by itself

	// TenantLimits returns the limits of a tenant in the database, or nil. It is called at
	// every request and does not wait. Nil: there are none.
	TenantLimits func(tenant string) *limits.Limits

	// Price returns the most that tokens can cost, or false if that is not known: of a
	// provider's model, for a request that asked for it by a name which may be another one.
	// Nil: nothing costs anything.
	Price func(provider, model, asked string, prompt, output int64, at time.Time) (inference.Cost, bool)

	// RowCost returns what a row of the ledger cost. Nil: as Price says of its tokens.
	RowCost func(*inference.Record) (inference.Cost, bool)
}

// payer is whom a request counts for.
type payer struct {
	key    string         // its id
	own    *limits.Limits // the key's; nil: it has none
	tenant string
	model  string // see countedModel
}

// countedModel is the model that a request counts for: the one asked for, or what its
// alias stands for. A provider that the name names is no part of it, whoever serves the
// request, or a limit of a model could be passed by naming a provider.
func countedModel(table *routing.Table, asked string, candidates []inference.Candidate) string {
	model, _ := table.Resolve(asked)
	provider, rest, named := strings.Cut(model, "/")
	if !named || rest == "" {
		return model
	}
	if slices.ContainsFunc(candidates, func(c inference.Candidate) bool { return c.Provider == provider }) || table.Knows(provider) {
		return rest
	}
	return model
}

func (l *LimitSettings) ofKey(own *limits.Limits) *limits.Limits { return limits.Either(own, &l.Key) }

func (l *LimitSettings) ofTenant(tenant string) *limits.Limits {
	others := &l.Tenant
	if l.TenantLimits != nil {
		others = limits.Either(l.TenantLimits(tenant), others)
	}
	return limits.Either(l.Tenants[tenant], others)
}

// scopesMost is how many scopes one request can have.
const scopesMost = 5

// scopes returns all that bounds a request, none if nothing does.
func (l *LimitSettings) scopes(p payer) []limits.Scope {
	key, tenant, entry := l.ofKey(p.own), l.ofTenant(p.tenant), entryFor(l.Models, p.model)
	if key.IsZero() && tenant.IsZero() && entry < 0 {
		return nil
	}
	scopes := make([]limits.Scope, 0, scopesMost)
	scopes = appendHolder(scopes, kindKey, p.key, key, p.model)
	scopes = appendHolder(scopes, kindTenant, p.tenant, tenant, p.model)
	if entry >= 0 {
		scopes = appendScope(scopes, holderScope(kindModel, p.model), ofModels(&l.Models[entry]))
	}
	if len(scopes) == 0 {
		return nil
	}
	return scopes
}

// appendHolder appends a holder's own scope, and that of its first entry which covers the
// model.
func appendHolder(scopes []limits.Scope, kind, name string, holder *limits.Limits, model string) []limits.Scope {
	if holder.IsZero() {
		return scopes
	}
	own := *holder
	own.Models, own.OnLimit = nil, ""
	id := holderScope(kind, name)
	scopes = appendScope(scopes, id, own)
	if i := entryFor(holder.Models, model); i >= 0 {
		if s := entryScope(id, holder, i); !s.Limits.IsZero() {
			scopes = append(scopes, s)
		}
	}
	return scopes
}

// The kinds of holders, with which the ids of their scopes begin.
const (
	kindKey    = "key:"
	kindTenant = "tenant:"
	kindModel  = "model:"
)

// holderScope is the id of the scope of all that a holder's limits are for.
func holderScope(kind, name string) string { return kind + escaped(name) }

// modelsMark stands in a scope's id before the models of a holder's entry, which are told
// apart by line ends: whatever the entry's place in the list is, it counts on.
const modelsMark = "/models:"

// entryScope is the scope of one of a holder's entries.
func entryScope(id string, holder *limits.Limits, i int) limits.Scope {
	entry := &holder.Models[i]
	models := make([]string, len(entry.Models))
	for j, m := range entry.Models {
		models[j] = escaped(m)
	}
	return limits.Scope{ID: id + modelsMark + strings.Join(models, "\n"), Limits: ofModels(entry), Before: holder.Models[:i]}
}

// escaped writes what means something in a scope's id as URLs write it, so that no two
// scopes share an id, whatever the subjects of tokens, tenants and models are called.
// Hardly any name has any of it.
func escaped(name string) string {
	if strings.ContainsAny(name, "%\n") || strings.Contains(name, modelsMark) {
		name = idEscapes.Replace(name)
	}
	if rest, ok := strings.CutSuffix(name, waitingSuffix); ok {
		name = rest + "%2F" + waitingSuffix[1:]
	}
	return name
}

var idEscapes = strings.NewReplacer("%", "%25", "\n", "%0A", modelsMark, "%2F"+modelsMark[1:])

// unescaped reads what escaped has written.
func unescaped(text string) string {
	name, err := url.PathUnescape(text)
	if err != nil {
		return text // nothing that escaped has written
	}
	return name
}

// SpendScope returns whose costs count for the scope.
func SpendScope(scope limits.Scope) store.SpendScope {
	holder, models, some := strings.Cut(scope.ID, modelsMark)
	kind, name, _ := strings.Cut(holder, ":")
	name = unescaped(name)
	var s store.SpendScope
	switch kind + ":" {
	case kindKey:
		s.KeyID = name
	case kindTenant:
		s.Tenant = name
	case kindModel:
		s.Models = []string{name}
	}
	if some {
		s.Models = strings.Split(models, "\n")
		for i, m := range s.Models {
			s.Models[i] = unescaped(m)
		}
	}
	for i := range scope.Before {
		s.Except = append(s.Except, scope.Before[i].Models...)
	}
	return s
}

// appendScope leaves out what bounds nothing, such as an entry that exempts its models
// from those behind it.
func appendScope(scopes []limits.Scope, id string, bounds limits.Limits) []limits.Scope {
	if bounds.IsZero() {
		return scopes
	}
	return append(scopes, limits.Scope{ID: id, Limits: bounds})
}

// entryFor returns the first entry that covers the model, or -1.
func entryFor(entries []limits.ModelLimits, model string) int {
	for i := range entries {
		if routing.MatchesAny(entries[i].Models, model) {
			return i
		}
	}
	return -1
}

func ofModels(m *limits.ModelLimits) limits.Limits {
	return limits.Limits{
		RequestsPerMinute: m.RequestsPerMinute, TokensPerMinute: m.TokensPerMinute,
		Concurrent: m.Concurrent, Queued: m.Queued, Budget: m.Budget,
	}
}

// waits reports whether a request that does not fit now waits until it does: as the key's
// limits say, or the tenant's if the key has none.
func (l *LimitSettings) waits(p payer) bool {
	if key := l.ofKey(p.own); !key.IsZero() {
		return key.OnLimit == limits.Queue
	}
	return l.ofTenant(p.tenant).OnLimit == limits.Queue
}
