package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
)

// Of a caller whose tokens may carry limits, what is used is shown without a limit, too.
func TestLimitsOfACallerWithTokensArePrinted(t *testing.T) {
	t.Parallel()
	var scope adminapi.LimitScope
	scope.RequestsPerMinute.Used, scope.Concurrent.Used = 4, 1
	printed := func(claim string) string {
		var out strings.Builder
		require.NoError(t, printLimits(&out, &adminapi.LimitsShown{Scopes: []adminapi.LimitScope{scope}, LimitsClaim: claim}))
		return out.String()
	}
	require.NotContains(t, printed(""), "requests_per_minute")
	text := printed("quota.limits")
	require.Regexp(t, `(?m)^all +requests_per_minute +- +4 +- +- +in 0s$`, text)
	require.Regexp(t, `(?m)^all +concurrent +- +1 `, text)
	require.NotContains(t, text, "queued")
	require.Contains(t, text, "may carry other limits in the claim quota.limits;")
}
