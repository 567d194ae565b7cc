package ingress

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/gorilla/mux"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/limits"
)

// LimitCounts reads what is counted for scopes, of all ingresses together. Errors:
// limits.ErrUnavailable, ctx's.
type LimitCounts interface {
	Count(ctx context.Context, scopes []limits.Scope) ([]limits.Count, error)
}

// routeLimits adds the operator's view of limits.
func (s *Ingress) routeLimits(r *mux.Router) {
	if s.opt.LimitCounts != nil {
		r.HandleFunc(adminapi.LimitsPath, s.showLimits).Methods(http.MethodGet)
	}
}

// showLimits serves GET /admin/v1/limits.
func (s *Ingress) showLimits(w http.ResponseWriter, r *http.Request) {
	shown, err := s.shownLimits(r.Context(), r.URL.Query())
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	s.writeJSON(w, r, shown)
}

func (s *Ingress) shownLimits(ctx context.Context, query url.Values) (*adminapi.LimitsShown, error) {
	kind, name, err := parseHolder(query)
	if err != nil {
		return nil, err
	}
	held, claim, err := s.heldBy(ctx, kind, name)
	if err != nil {
		return nil, err
	}
	asked := make([]limits.Scope, 0, 2*len(held))
	for _, h := range held {
		asked = append(asked, h.Scope, waitingScope(&h.Scope))
	}
	now := time.Now()
	counts, err := s.opt.LimitCounts.Count(ctx, asked)
	switch {
	case errors.Is(err, limits.ErrUnavailable):
		return nil, &inference.Error{Code: inference.CodeLimitsUnavailable, Retryable: true, Message: "The counters of limits cannot be reached at the moment.", Err: err}
	case err != nil:
		return nil, err
	}
	shown := &adminapi.LimitsShown{At: now.UTC(), Scopes: []adminapi.LimitScope{}, LimitsClaim: claim}
	for i, h := range held {
		scope := shownScope(&h, &counts[2*i])
		scope.Waiting = counts[2*i+1].Queued
		shown.Scopes = append(shown.Scopes, scope)
	}
	return shown, nil
}

// parseHolder reads who is asked about.
func parseHolder(q url.Values) (kind, name string, err error) {
	given := 0
	for _, known := range []string{"key", "tenant", "model"} {
		text, err := queryName(q, known)
		if err != nil {
			return "", "", err
		}
		if text != "" {
			kind, name, given = known, text, given+1
		}
	}
	if given != 1 {
		return "", "", invalidField("", "Write one of key, tenant and model.")
	}
	return kind, name, nil
}

// heldScope is a scope of a holder, and the models that it is for.
type heldScope struct {
	limits.Scope
	models []string // empty: all
}

// heldBy returns the scopes that are the holder's own, and the claim in which its tokens
// may carry other limits, if it has tokens.
func (s *Ingress) heldBy(ctx context.Context, kind, name string) (held []heldScope, claim string, err error) {
	now := s.current()
	switch kind {
	case "tenant":
		return heldScopes(holderScope(kindTenant, name), now.Limits.ofTenant(name)), "", nil
	case "model":
		model := countedModel(s.table(now), name, nil)
		i := entryFor(now.Limits.Models, model)
		if i < 0 {
			return nil, "", nil
		}
		return heldScopes(holderScope(kindModel, model), new(ofModels(&now.Limits.Models[i]))), "", nil
	}
	if own, claim, known := now.callers.tokens.CallerLimits(name); known {
		return callerScopes(holderScope(kindKey, name), now.Limits.ofKey(own), claim), claim, nil
	}
	key, err := s.keyNamed(ctx, name)
	if err != nil {
		return nil, "", err
	}
	return heldScopes(holderScope(kindKey, key.ID), now.Limits.ofKey(key.Limits)), "", nil
}

// callerScopes are the scopes of a caller with tokens. Where these may carry limits, all of
// its requests may be counted, whether there is a limit here or not.
func callerScopes(id string, holder *limits.Limits, claim string) []heldScope {
	held := heldScopes(id, holder)
	if claim != "" && (len(held) == 0 || held[0].ID != id) {
		held = append([]heldScope{{Scope: limits.Scope{ID: id}}}, held...)
	}
	return held
}

// heldScopes returns the scope of all of a holder's requests, unless nothing bounds those,
// and one for each of its entries for models.
func heldScopes(id string, holder *limits.Limits) []heldScope {
	var held []heldScope
	own := *holder
	own.Models, own.OnLimit = nil, ""
	if !own.IsZero() {
		held = append(held, heldScope{Scope: limits.Scope{ID: id, Limits: own}})
	}
	for i := range holder.Models {
		if s := entryScope(id, holder, i); !s.Limits.IsZero() {
			held = append(held, heldScope{s, holder.Models[i].Models})
		}
	}
	return held
}

func shownScope(h *heldScope, c *limits.Count) adminapi.LimitScope {
	l := &h.Limits
	shown := adminapi.LimitScope{
		Scope: h.ID, Models: append([]string{}, h.models...), Ingresses: c.Processes,
		RequestsPerMinute: shownWindow(l.RequestsPerMinute, c.Requests), TokensPerMinute: shownWindow(l.TokensPerMinute, c.Tokens),
		Concurrent: shownGauge(l.Concurrent, c.Concurrent), Queued: shownGauge(l.Queued, c.Queued),
	}
	spend := func(most, spent inference.Cost, ends time.Time) *adminapi.LimitSpend {
		if most == 0 {
			return nil
		}
		return &adminapi.LimitSpend{Limit: most, Spent: spent, Remaining: max(most-spent-c.Reserved, 0), ResetsAt: ends}
	}
	shown.Budget = adminapi.LimitBudget{
		Day:      spend(l.Budget.Day, c.Spent.Day, c.Ends.Day),
		Week:     spend(l.Budget.Week, c.Spent.Week, c.Ends.Week),
		Month:    spend(l.Budget.Month, c.Spent.Month, c.Ends.Month),
		Reserved: c.Reserved, Orphaned: c.Orphaned, OrphanedUntil: timeOrNull(c.Until),
	}
	return shown
}

func shownWindow(most int64, t limits.Taken) adminapi.LimitWindow {
	g := shownGauge(most, t.Used)
	return adminapi.LimitWindow{Limit: g.Limit, Used: g.Used, Remaining: g.Remaining, ResetSeconds: t.Reset.Seconds()}
}

func shownGauge(most, used int64) adminapi.LimitGauge {
	if most == 0 {
		return adminapi.LimitGauge{Used: used}
	}
	left := max(most-used, 0)
	return adminapi.LimitGauge{Limit: &most, Used: used, Remaining: &left}
}
