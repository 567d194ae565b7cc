package ingress

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/routing"
	"sluice/internal/token"
	"sluice/store"
)

// counted is what is counted, by scope.
type counted map[string]limits.Count

func (c counted) Count(_ context.Context, scopes []limits.Scope) ([]limits.Count, error) {
	if c == nil {
		return nil, fmt.Errorf("%w: away", limits.ErrUnavailable)
	}
	counts := make([]limits.Count, len(scopes))
	for i, s := range scopes {
		counts[i] = c[s.ID]
	}
	return counts, nil
}

// limitsAdmin is the admin API of an ingress that has nothing but limits.
func limitsAdmin(t *testing.T, c counted) http.Handler {
	t.Helper()
	s := ingressOf(nil, routing.Policy{})
	s.opt.LimitCounts = c
	now := Settings{Policy: routing.Policy{Aliases: map[string]string{"small": "m-1"}}}
	now.StaticKeys = []store.Key{
		{ID: "config:ci", Name: "ci", Limits: &limits.Limits{
			RequestsPerMinute: 60, Queued: 3, Budget: limits.Budget{Day: 5_000_000_000},
			Models: []limits.ModelLimits{{Models: []string{"a", "b*"}, Concurrent: 2}, {Models: []string{"free"}}},
		}},
		{ID: "config:free", Name: "free"},
	}
	now.Limits.Tenants = map[string]*limits.Limits{"acme": {TokensPerMinute: 1000}}
	now.Limits.Models = []limits.ModelLimits{{Models: []string{"m-*"}, Concurrent: 4}}
	now.layout = s.workers.configure(nil, now.Policy)
	s.settings.Store(&now)
	return admin(t, s, adminToken)
}

func TestOperatorsSeeHowLimitsStand(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	h := limitsAdmin(t, counted{
		"key:config:ci": {
			Requests: limits.Taken{Used: 61, Reset: 41500 * time.Millisecond}, Tokens: limits.Taken{Used: 900}, Concurrent: 2, Queued: 1, Processes: 3,
			Spent: limits.Budget{Day: 3_500_000_000}, Ends: limits.Ends{Day: noon}, Reserved: 250_000_000, Orphaned: 100_000_000, Until: noon,
		},
		"key:config:ci/waiting":      {Queued: 2},
		"key:config:ci/models:a\nb*": {Concurrent: 1},
		"tenant:acme":                {Tokens: limits.Taken{Used: 100, Reset: time.Second}},
		"model:m-1":                  {Concurrent: 4},
	})
	shown := func(query string) (l adminapi.LimitsShown) {
		w := ask(h, http.MethodGet, adminapi.LimitsPath+"?"+query, "Bearer "+adminToken, "")
		require.Equal(t, http.StatusOK, w.Code, w.Body.String())
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &l))
		require.WithinDuration(t, time.Now(), l.At, time.Minute)
		return l
	}
	text := func(v any) string {
		b, err := json.Marshal(v)
		require.NoError(t, err)
		return string(b)
	}
	for _, key := range []string{"ci", "config:ci"} {
		scopes := shown("key=" + key).Scopes
		require.Len(t, scopes, 2, "an entry without bounds is no scope")
		require.JSONEq(t, `{"scope":"key:config:ci","models":[],
			"requests_per_minute":{"limit":60,"used":61,"remaining":0,"reset_seconds":41.5},
			"tokens_per_minute":{"limit":null,"used":900,"remaining":null,"reset_seconds":0},
			"concurrent":{"limit":null,"used":2,"remaining":null},"queued":{"limit":3,"used":1,"remaining":2},"waiting":2,
			"budget":{"day":{"limit":5,"spent":3.5,"remaining":1.25,"resets_at":"2026-01-02T12:00:00Z"},"week":null,"month":null,
				"reserved":0.25,"orphaned":0.1,"orphaned_until":"2026-01-02T12:00:00Z"},"ingresses":3}`, text(scopes[0]))
		require.Equal(t, []string{"a", "b*"}, scopes[1].Models)
		require.EqualValues(t, 1, *scopes[1].Concurrent.Remaining)
	}
	require.EqualValues(t, 900, *shown("tenant=acme").Scopes[0].TokensPerMinute.Remaining)
	require.Zero(t, *shown("model=small").Scopes[0].Concurrent.Remaining, "an alias stands for its model")
	for _, none := range []string{"key=free", "tenant=others", "model=x"} {
		require.Equal(t, []adminapi.LimitScope{}, shown(none).Scopes)
	}
}

// What a token carries is known while it is used alone; the counters are there all the same.
func TestOperatorsSeeHowCallersWithTokensStand(t *testing.T) {
	t.Parallel()
	s, _ := door(t)
	caller, err := s.authenticate(asking(jwt()))
	require.NoError(t, err)
	scope := "key:" + caller.ID
	s.opt.LimitCounts = counted{scope: {Requests: limits.Taken{Used: 4, Reset: time.Second}, Concurrent: 1}}
	h := admin(t, s, adminToken)
	shown := func(own *limits.Limits, claim string, ofKeys limits.Limits) (l adminapi.LimitsShown) {
		next, issuer := *s.current(), loginIssuer()
		issuer.Limits, issuer.LimitsClaim = own, claim
		next.Tokens, next.Limits.Key = []token.Issuer{issuer}, ofKeys
		s.Apply(next)
		tell(t, h, http.MethodGet, adminapi.LimitsPath+"?key="+url.QueryEscape(caller.ID), "", &l)
		require.Equal(t, claim, l.LimitsClaim)
		return l
	}
	ten, models := limits.Limits{RequestsPerMinute: 10}, limits.Limits{Models: []limits.ModelLimits{{Models: []string{"m"}, Queued: 1}}}
	for name, l := range map[string]adminapi.LimitsShown{
		"the issuer's":          shown(&ten, "limits", limits.Limits{Queued: 1}),
		"those of keys without": shown(nil, "", ten),
		"an action alone":       shown(&limits.Limits{OnLimit: limits.Queue}, "", ten),
	} {
		require.Len(t, l.Scopes, 1, name)
		require.Equal(t, scope, l.Scopes[0].Scope)
		require.EqualValues(t, 6, *l.Scopes[0].RequestsPerMinute.Remaining, name)
	}
	require.Empty(t, shown(nil, "", limits.Limits{}).Scopes, "nothing limits it")
	for name, l := range map[string]adminapi.LimitsShown{
		"none here":         shown(nil, "limits", limits.Limits{}),
		"of one model here": shown(&models, "limits", limits.Limits{}),
	} {
		require.Equal(t, scope, l.Scopes[0].Scope, name)
		require.Nil(t, l.Scopes[0].RequestsPerMinute.Limit, name)
		require.EqualValues(t, 4, l.Scopes[0].RequestsPerMinute.Used, name)
	}
	s.trust()
	w := tell(t, h, http.MethodGet, adminapi.LimitsPath+"?key="+url.QueryEscape(caller.ID), "", nil)
	require.Equal(t, string(inference.CodeNotFound), refusal(t, w).Error.Code, "its issuer is none of ours")
}

func TestLimitsThatAreNotShown(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]inference.ErrorCode{
		"":                   inference.CodeInvalidRequest,
		"key=ci&tenant=acme": inference.CodeInvalidRequest,
		"key=ci&key=ci":      inference.CodeInvalidRequest,
		"key=":               inference.CodeInvalidRequest,
		"key=ci&tenant=":     inference.CodeInvalidRequest,
		"scope=key:ci":       inference.CodeInvalidRequest,
		"key=%zz":            inference.CodeInvalidRequest,
		"tenant=%00":         inference.CodeInvalidRequest,
		"key=" + strings.Repeat("x", store.MaxTextBytes+1): inference.CodeInvalidRequest,
		"key=nobody": inference.CodeNotFound,
		"key=ci":     inference.CodeLimitsUnavailable,
	} {
		w := ask(limitsAdmin(t, nil), http.MethodGet, adminapi.LimitsPath+"?"+query, "Bearer "+adminToken, "")
		require.Equal(t, string(want), refusal(t, w).Error.Code, query)
	}
	require.Equal(t, http.StatusUnauthorized, ask(limitsAdmin(t, nil), http.MethodGet, adminapi.LimitsPath+"?key=ci", "", "").Code)
}
