package e2e_test

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
)

// limitKeys makes a key and a tenant with every limit that there is.
func (s *surface) limitKeys() {
	t := s.t
	t.Helper()
	file := filepath.Join(s.dir, "limits.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"models": [{"models": ["kept*"], "requests_per_minute": 5}], "queued": 99}`), 0o600))
	all := " --requests-per-minute 2 --tokens-per-minute 90000 --concurrent 3 --queued 4 --budget-day 101.5 --budget-week 102.5 --budget-month 103.5 --on-limit refuse --limits " + file
	limits := map[string]any{
		"requests_per_minute": 2., "tokens_per_minute": 90000., "concurrent": 3., "queued": 4., "on_limit": "refuse",
		"budget": map[string]any{"day": 101.5, "week": 102.5, "month": 103.5},
		"models": []any{map[string]any{"models": []any{"kept*"}, "requests_per_minute": 5.}},
	}
	secret := s.secret("keys create bounded --tenant bounded --models plain,kept* --expires 1h" + all)
	var key struct {
		ID, State, Tenant string
		Models            []string
		Limits            map[string]any
		Expires           *time.Time `json:"expires_at"`
	}
	s.decoded("keys show bounded", &key)
	require.Equal(t, limits, key.Limits)
	require.Equal(t, []string{"plain", "kept*"}, key.Models)
	require.Equal(t, []string{"active", "bounded"}, []string{key.State, key.Tenant})
	require.WithinDuration(t, time.Now().Add(time.Hour), *key.Expires, time.Minute)
	require.Equal(t, http.StatusForbidden, s.chat(secret, "private", "x").status)
	for _, want := range []int{http.StatusOK, http.StatusOK, http.StatusTooManyRequests} {
		got := s.chat(secret, "plain", "bounded")
		require.Equal(t, want, got.status, got.body)
	}
	s.do("keys update bounded --no-limits --never-expires")
	require.Eventually(t, func() bool { return s.chat(secret, "plain", "again").status == http.StatusOK }, patience, pollEvery)
	require.Contains(t, s.do("keys list --tenant bounded --state active"), key.ID)

	require.Contains(t, s.refused(1, "tenants show bounded"), "tenants list")
	s.do("tenants set bounded" + all)
	var tenant struct {
		Limits   map[string]any
		Disabled bool
	}
	s.decoded("tenants show bounded", &tenant)
	require.Equal(t, limits, tenant.Limits)
	require.Contains(t, s.do("tenants list --json"), `"name":"bounded"`)
	s.do("tenants set bounded --no-limits --disable")
	require.Eventually(t, func() bool { return s.chat(secret, "plain", "again").status == http.StatusForbidden }, patience, pollEvery)
	s.do("keys revoke bounded")
	require.Contains(t, s.refused(1, "tenants show nobody"), "nobody")
	require.Contains(t, s.refused(1, "keys rotate app-none"), "keys list")
	require.Contains(t, s.do("keys list --state revoked"), key.ID)
}

// usageRow is a line of a report, by its columns.
type usageRow map[string]any

func (r usageRow) number(column string) float64 { n, _ := r[column].(float64); return n }

func (s *surface) usage(flags string) (rows []usageRow) {
	s.t.Helper()
	var report struct{ Rows []usageRow }
	s.decoded("usage --json "+flags, &report)
	return report.Rows
}

// account has the costs add up to the calls that were made, whatever they are summed up by.
func (s *surface) account(key string) {
	t := s.t
	t.Helper()
	second := s.secret("keys create batch --tenant ops")
	var id struct{ ID string }
	s.decoded("keys show batch", &id)
	for _, call := range []struct{ key, model, cache string }{
		{key, "plain", ""},
		{key, "plain", ""},
		{key, "kept", "miss"},
		{key, "kept", "hit"},
		{key, "kept", "hit"},
		{second, "plain", ""},
		{second, "unpriced", ""},
		{second, "kept", "miss"},
	} {
		got := s.chat(call.key, call.model, "count me")
		require.Equal(t, http.StatusOK, got.status, got.body)
		if call.cache != "" {
			require.Equal(t, call.cache, got.cache)
		}
	}
	require.Eventually(t, func() bool {
		rows := s.usage("--group-by= --tenant research")
		return len(rows) == 1 && rows[0].number("requests") == 5
	}, patience, 5*pollEvery)
	require.Eventually(t, func() bool { return s.usage("--group-by= --tenant ops")[0].number("requests") == 3 }, patience, 5*pollEvery)
	for flags, want := range map[string]struct{ requests, hits, priced, unpriced float64 }{
		"--group-by= --tenant research":                          {5, 2, 3, 0},
		"--group-by= --tenant ops":                               {3, 0, 2, 1},
		"--group-by= --key " + id.ID:                             {3, 0, 2, 1},
		"--group-by= --model kept":                               {4, 2, 2, 0},
		"--group-by= --provider other":                           {1, 0, 0, 1},
		"--group-by= --model kept --tenant ops":                  {1, 0, 1, 0},
		"--group-by tenant,model --tenant research --model kept": {3, 2, 1, 0},
	} {
		rows := s.usage(flags)
		require.Len(t, rows, 1, flags)
		require.InDelta(t, want.requests, rows[0].number("requests"), 0, flags)
		require.InDelta(t, want.hits, rows[0].number("cache_hits"), 0, flags)
		require.InDelta(t, want.unpriced, rows[0].number("unpriced_requests"), 0, flags)
		require.InDelta(t, want.priced*surfaceCost, rows[0].number("cost"), 1e-9, flags)
		require.InDelta(t, 7*(want.priced+want.unpriced), rows[0].number("prompt_tokens"), 0, "%s: a hit costs no provider's tokens", flags)
	}
	require.Empty(t, s.usage("--to 2020-01-01 --from 2019-01-01"))
	total := s.usage("--group-by=")[0]
	for _, by := range []string{"key", "tenant", "model", "provider", "hour", "day", "month", "day,tenant,key,model,provider"} {
		sum := map[string]float64{}
		for _, row := range s.usage("--group-by " + by) {
			for column := range maps.Keys(row) {
				sum[column] += row.number(column)
			}
		}
		for _, column := range []string{"requests", "cache_hits", "cost", "prompt_tokens", "completion_tokens"} {
			require.InDelta(t, total.number(column), sum[column], 1e-9, "%s by %s", column, by)
		}
	}
	s.reportForms(total)
}

// reportForms has every form of a report say the same, page by page and in one go.
func (s *surface) reportForms(total usageRow) {
	t := s.t
	t.Helper()
	const by = "tenant,model"
	table, err := csv.NewReader(strings.NewReader(s.do("usage --csv --group-by " + by))).ReadAll()
	require.NoError(t, err)
	column := slices.Index(table[0], "cost")
	var cost float64
	for _, cells := range table[1:] {
		c, err := strconv.ParseFloat(cells[column], 64)
		require.NoError(t, err)
		cost += c
	}
	require.InDelta(t, total.number("cost"), cost, 1e-9)
	require.Regexp(t, fmt.Sprintf(`(?m)^total +%.0f +`, total.number("requests")), s.do("usage --group-by "+by))
	require.Contains(t, s.do("usage"), "Requests without a known price: 1;")

	var paged []usageRow
	for after := ""; ; {
		var page struct {
			Rows []usageRow
			Next *string
		}
		s.get("/admin/v1/usage?limit=2&group_by="+url.QueryEscape(by)+after, &page)
		require.LessOrEqual(t, len(page.Rows), 2)
		paged = append(paged, page.Rows...)
		if page.Next == nil {
			break
		}
		after = "&after=" + url.QueryEscape(*page.Next)
	}
	require.Greater(t, len(paged), 4)
	require.Equal(t, s.usage("--group-by "+by), paged)
	require.Contains(t, s.refused(2, "usage --group-by moon"), "--group-by must be names of")
	require.Contains(t, s.refused(2, "usage --csv --json"), "want one of them")

	// At the database itself it is the same report.
	here := s.administration
	here.env = append([]string{"SLUICE_DATA_DIR=" + filepath.Join(s.dir, "data")}, s.database...)
	require.Equal(t, s.do("usage --csv --group-by "+by), here.do("usage --csv --group-by "+by))
	require.Equal(t, s.do("keys list --json"), here.do("keys list --json"))
	require.Equal(t, s.do("tenants list"), here.do("tenants list"))
	for _, line := range []string{"providers list", "queues list", "dead-letters list", "cache show", "webhooks list", "config show --live", "config reload", "route explain --model plain --live"} {
		code, _, stderr := here.try(line)
		require.Equal(t, 1, code, line)
		require.Contains(t, stderr, "admin.address and admin.token", line)
	}
}

// get asks the admin listener as curl would.
func (s *surface) get(path string, into any) {
	s.t.Helper()
	address := strings.TrimPrefix(s.env[0], "SLUICE_ADMIN_ADDRESS=")
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://"+address+path, nil)
	require.NoError(s.t, err)
	req.Header.Set("Authorization", "Bearer "+surfaceToken)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(s.t, err)
	defer resp.Body.Close()
	require.Equal(s.t, http.StatusOK, resp.StatusCode, path)
	require.NoError(s.t, json.NewDecoder(resp.Body).Decode(into))
}

// forget has cached answers forgotten, by all that a purge can name, and leaves the others.
func (s *surface) forget(key string) {
	t := s.t
	t.Helper()
	var app struct{ ID string }
	s.decoded("keys show app", &app)
	other := s.secret("keys create other --tenant ops")
	require.Equal(t, "hit", s.chat(key, "kept", "count me").cache)
	require.Equal(t, "hit", s.chat(other, "kept", "count me").cache, "a tenant's keys share answers")
	require.Equal(t, "miss", s.chat(key, "kept-too", "count me").cache)
	require.Equal(t, "miss", s.chat(key, "private", "mine").cache)
	require.Equal(t, "miss", s.chat(other, "private", "mine").cache, "these are of a key alone")
	s.eventually("cache show", "database  5 ")
	require.Regexp(t, `(?m)^This ingress: 4 hits, 5 misses, 0 stale answers\.$`, s.do("cache show"))
	s.refused(2, "cache purge")
	s.refused(2, "cache purge --all --model kept")
	for _, purge := range []struct {
		flags   string
		removed int
		missing []string // models that the key asks for anew
		left    int      // answers in the database after that
	}{
		{"--model none", 0, nil, 5},
		{"--tenant ops --model kept", 1, nil, 4},
		{"--model kept-too", 1, []string{"kept-too"}, 4},
		{"--key " + app.ID, 3, []string{"kept", "kept-too", "private"}, 4},
		{"--tenant research", 3, []string{"kept", "kept-too", "private"}, 4},
		{"--all", 4, []string{"kept", "kept-too", "private"}, 3},
	} {
		require.Equal(t, map[bool]string{true: "1 answer is forgotten.\n", false: fmt.Sprintf("%d answers are forgotten.\n", purge.removed)}[purge.removed == 1], s.do("cache purge "+purge.flags), purge.flags)
		for model, prompt := range map[string]string{"kept": "count me", "kept-too": "count me", "private": "mine"} {
			want := "hit"
			if slices.Contains(purge.missing, model) {
				want = "miss"
			}
			require.Equal(t, want, s.chat(key, model, prompt).cache, "%s after a purge of %s", model, purge.flags)
		}
		s.eventually("cache show", fmt.Sprintf("database  %d ", purge.left))
	}
	require.Equal(t, "miss", s.chat(other, "kept", "count me").cache)
	require.Equal(t, "miss", s.chat(other, "private", "mine").cache)
}

// shownQueue is a provider's queue as it is listed.
type shownQueue struct {
	Provider, State string
	Lanes           []struct {
		Oldest  *time.Time
		Seconds float64 `json:"oldest_seconds"`
	}
}

// hold has calls wait for a paused provider, end with a purge, and be sent nowhere while it
// is drained.
func (s *surface) hold(key string) {
	t := s.t
	t.Helper()
	require.Equal(t, "Provider up is paused.\n", s.do("providers pause up --reason maintenance"))
	wait := s.held(3, key, "plain")
	s.waits(3)
	before := s.upstream.Count()
	var list struct{ Queues []shownQueue }
	s.decoded("queues list --json", &list)
	up := list.Queues[slices.IndexFunc(list.Queues, func(q shownQueue) bool { return q.Provider == "up" })]
	require.Equal(t, "paused", up.State)
	require.NotNil(t, up.Lanes[0].Oldest)
	require.Positive(t, up.Lanes[0].Seconds)
	require.Regexp(t, `(?m)^up +paused +interactive +3 +0 +\d+s `, s.do("queues list"))
	require.Regexp(t, `(?m)^up +paused +.*maintenance$`, s.do("providers list"))
	require.Equal(t, "Provider up is active.\n", s.do("providers resume up"))
	for _, a := range wait() {
		require.Equal(t, http.StatusOK, a.status, a.body)
	}
	require.Equal(t, before+3, s.upstream.Count(), "they were called after the pause, once each")

	require.Regexp(t, `^Provider up is paused until \S+Z\.\n$`, s.do("providers pause up --for 1h"))
	wait = s.held(2, key, "plain")
	s.waits(2)
	s.refused(2, "queues purge up")
	require.Equal(t, "0 jobs ended, 0 are with workers.\n", s.do("queues purge up --yes --older-than 1h"))
	require.Equal(t, "2 jobs ended, 0 are with workers.\n", s.do("queues purge up --yes"))
	for _, a := range wait() {
		require.Equal(t, http.StatusServiceUnavailable, a.status, a.body)
		require.Contains(t, a.body, "purged")
	}
	wait = s.held(1, key, "plain")
	s.waits(1)
	require.Contains(t, s.do("providers drain up --for 2m"), "Provider up is draining until")
	require.Equal(t, http.StatusOK, wait()[0].status, "what was in the queue is worked off")
	turned := s.chat(key, "plain", "new")
	require.Equal(t, http.StatusServiceUnavailable, turned.status)
	require.NotEmpty(t, turned.head.Get("Retry-After"))
	require.Contains(t, s.refused(1, "route explain --model plain --live"), "no provider serves")
	s.do("providers resume up")
	require.Equal(t, http.StatusOK, s.chat(key, "plain", "new").status)
	require.Regexp(t, `(?m)^1 +up/plain +`, s.do("route explain --model plain --live"))
	require.Equal(t, before+5, s.upstream.Count())
	require.Contains(t, s.refused(1, "providers pause nobody"), "names no provider")
}

// waits returns once so many calls stand in the provider's queue.
func (s *surface) waits(n int) {
	s.t.Helper()
	s.eventually("providers list", fmt.Sprintf("  %d/0/0  ", n))
}

// breakers has a breaker open, behind which a call waits, and closes it.
func (s *surface) breakers(key string) {
	t := s.t
	t.Helper()
	s.broken.Store(true)
	wait := s.held(1, key, "broken")
	s.eventually("providers list", "broken open")
	s.broken.Store(false)
	calls := s.upstream.Count()
	require.Equal(t, "1 of 1 worker heard it and closed 0 breakers.\n", s.do("providers reset-breakers up --model plain"))
	require.Equal(t, calls, s.upstream.Count(), "it was another model's")
	require.Equal(t, "1 of 1 worker heard it and closed 1 breaker.\n", s.do("providers reset-breakers up --model broken"))
	require.Equal(t, http.StatusOK, wait()[0].status)
	s.eventually("providers list --json", `"broken": "closed"`)
}
