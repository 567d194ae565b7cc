package e2e_test

import (
	"strings"

	"github.com/stretchr/testify/require"
)

// requireWhole has every change in the audit, with who, what, before and after, and no
// secret anywhere.
func (s *surface) requireWhole() {
	t := s.t
	t.Helper()
	seen := map[string][]auditLine{}
	for _, e := range s.audit("--limit 1000 --actor on-call") {
		seen[e.Action] = append(seen[e.Action], e)
	}
	for action, want := range map[string]struct {
		target        string // of each
		times         int
		before, after []string // members of the last one's
	}{
		"key.create":    {"key:key_", 4, nil, []string{"name", "limits"}},
		"key.update":    {"key:key_", 1, []string{"limits", "expires_at"}, []string{"name"}},
		"key.revoke":    {"key:key_", 1, []string{"name"}, []string{"revoked_at"}},
		"tenant.create": {"tenant:bounded", 1, nil, []string{"limits"}},
		"tenant.update": {"tenant:bounded", 1, []string{"limits"}, []string{"disabled"}},
		"cache.purge":   {"cache", 6, nil, []string{"model"}},

		"cache.purge.done": {"cache", 6, nil, []string{"deleted"}},

		"provider.pause":          {"provider:up", 3, []string{"state"}, []string{"state", "since", "reason"}},
		"provider.drain":          {"provider:up", 1, []string{"state"}, []string{"state", "until"}},
		"provider.resume":         {"provider:up", 3, []string{"state"}, []string{"state"}},
		"provider.reset_breakers": {"provider:up", 2, nil, []string{"model"}},
		"queue.purge":             {"queue:up", 2, nil, []string{"lane", "older_than"}},
		"queue.purge.done":        {"queue:up", 2, nil, []string{"ended", "kept"}},

		"webhook.create":        {"webhook:whk_", 1, nil, []string{"url", "events", "tenant"}},
		"webhook.rotate":        {"webhook:whk_", 1, []string{"url"}, []string{"overlap"}},
		"webhook.enable":        {"webhook:whk_", 1, []string{"disabled_at", "disabled_for"}, []string{"url"}},
		"webhook.delete":        {"webhook:whk_", 1, []string{"url"}, nil},
		"webhook.redeliver":     {"event:evt_", 1, nil, []string{"webhook"}},
		"webhook_secret.read":   {"tenant:research", 2, nil, nil},
		"webhook_secret.rotate": {"tenant:research", 1, nil, []string{"overlap"}},

		"config.reload":                   {"config:" + s.config, 2, []string{"hash"}, nil},
		"config.reload.failed":            {"config:" + s.config, 1, nil, []string{"code"}},
		"config.reload.done":              {"config:" + s.config, 1, []string{"hash"}, []string{"hash"}},
		"dead_letter.read_body":           {"dead_letter:dead_3", 1, nil, nil},
		"dead_letter.requeue":             {"dead_letter:dead_1", 1, []string{"reason", "provider"}, nil},
		"dead_letter.requeue_many":        {"dead_letters", 3, nil, []string{"provider", "limit"}},
		"dead_letter.requeue_many.failed": {"dead_letters", 3, nil, []string{"code", "done"}},
		"dead_letter.drop":                {"dead_letter:dead_3", 1, []string{"reason", "provider"}, nil},
		"dead_letter.drop_many":           {"dead_letters", 2, nil, []string{"limit"}},
		"dead_letter.drop_many.done":      {"dead_letters", 2, nil, []string{"dropped", "ids"}},
	} {
		if action == "cache.purge" {
			require.Equal(t, true, seen[action][0].After["all"], "the last one")
		}
		if action == "queue.purge.done" {
			require.Len(t, seen[action][0].After["ids"], 2, "those that the second purge ended")
		}
		require.Len(t, seen[action], want.times, action)
		oldest := seen[action][want.times-1]
		for _, e := range seen[action] {
			require.True(t, strings.HasPrefix(e.Target, want.target), "%s of %s", action, e.Target)
		}
		for _, member := range want.before {
			require.Contains(t, oldest.Before, member, action)
		}
		for _, member := range want.after {
			require.Contains(t, oldest.After, member, action)
		}
		delete(seen, action)
	}
	require.Empty(t, seen, "and nothing else was done")
	require.Empty(t, s.audit("--actor dashboards"))
	require.Empty(t, s.audit("--to 2020-01-01T00:00:00Z"))

	everything := s.do("audit list --limit 1000") + s.do("audit list --json --limit 1000") + s.do("keys list --json") + s.do("webhooks list") + s.do("config show --live") +
		s.said + s.p.stdout.String() + s.p.stderr.String()
	for _, secret := range append(s.secrets, "of-the-receiver") {
		require.NotContains(t, everything, secret)
	}
}
