package ingress

import (
	"context"
	"net/http"

	"sluice/internal/cache"
	"sluice/internal/pricing"
	"sluice/internal/routing"
	"sluice/internal/token"
	"sluice/store"
)

// Settings are what may change while an ingress runs. A value of it is not changed: the
// next one takes its place whole, and a request goes on with the one it began with, from
// the check of its key to its price; only while it waits for its limits, those in force
// count. What lives longer than that stands outside: the keys of the database and of
// issuers, what workers say, and the turns of rules.
type Settings struct {
	StaticKeys []store.Key
	Providers  map[string]ProviderInfo
	Policy     routing.Policy
	Prices     *pricing.Table // nil: nothing has a price

	Tokens []token.Issuer // whose tokens are taken beside keys
	CORS   *CORS          // nil: pages of other origins may not call
	Limits LimitSettings
	Cache  cache.Policy

	callers callers // of StaticKeys and Tokens
	layout  *layout // of Providers and Policy
}

// current returns the settings that a request which begins now goes by.
func (s *Ingress) current() *Settings { return s.settings.Load() }

// settingsKey is what a request's context has its settings under.
type settingsKey struct{}

// begun returns the request with the settings that it goes by to its end. They stand in
// its context because the first that asks for them, the rules for pages of other origins,
// comes before any handler.
func (s *Ingress) begun(r *http.Request) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), settingsKey{}, s.current()))
}

// settingsOf returns the settings that the request began with.
func (s *Ingress) settingsOf(r *http.Request) *Settings {
	if settings, ok := r.Context().Value(settingsKey{}).(*Settings); ok {
		return settings
	}
	return s.current() // a listener of operators, where nothing is swapped in the middle
}

// authenticate returns whose request it is.
func (s *Ingress) authenticate(r *http.Request) (store.Key, error) {
	return s.keys.authenticate(r, s.settingsOf(r).callers)
}

// table returns the routing table of the settings, with what workers say by now.
func (s *Ingress) table(of *Settings) *routing.Table { return s.workers.tableOf(of.layout) }

// Apply puts other settings in the place of those there are, in one swap of one pointer.
// Requests that have begun go on with the ones that they began with, in everything but
// limits that they still wait for. A key that next does not have is refused from now on.
// Of rules that remain the turns go on. Nothing more is sent to a provider that next does
// not have, for as long as workers still announce it; they work off its queue.
func (s *Ingress) Apply(next Settings) {
	s.applying.Lock()
	defer s.applying.Unlock()
	s.take(next)
	s.flights.needStreams() // also when no provider is new: a bound may be
}

// take builds what is made of settings, and puts them in force. What the database says of
// tenants stands beside them.
func (s *Ingress) take(next Settings) {
	next.Limits.TenantLimits = s.tenantLimits
	next.callers = newCallers(next.StaticKeys, s.tokens.Use(next.Tokens))
	next.layout = s.workers.configure(next.Providers, next.Policy)
	s.settings.Store(&next)
}
