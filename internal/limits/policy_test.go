package limits

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Whoever wrote the limits reads which of them is not in order.
func TestALimitThatIsNotInOrderIsNamed(t *testing.T) {
	t.Parallel()
	many := make([]ModelLimits, MaxModels+1)
	for want, l := range map[string]Limits{
		"on_limit must be refuse or queue":                     {OnLimit: "wait"},
		"requests_per_minute must be from 0 to 1000000000000":  {RequestsPerMinute: -1},
		"tokens_per_minute must be from 0 to 1000000000000":    {TokensPerMinute: maxCount + 1},
		"concurrent must be from 0 to 1000000000000":           {Concurrent: -1},
		"queued must be from 0 to 1000000000000":               {Queued: -1},
		"budget.day must not be negative":                      {Budget: Budget{Day: -1, Month: 1}},
		"budget.week must not be negative":                     {Budget: Budget{Day: 1, Week: -1}},
		"budget.month must not be negative":                    {Budget: Budget{Month: -1}},
		"models has more than 100 entries":                     {Models: many},
		"models[0].models names no model":                      {Models: []ModelLimits{{Queued: 1}}},
		"models[1].budget.week must not be negative":           {Models: []ModelLimits{{Models: []string{"m"}}, {Models: []string{"n"}, Budget: Budget{Week: -1}}}},
		"models[0].concurrent must be from 0 to 1000000000000": {Models: []ModelLimits{{Models: []string{"m"}, Concurrent: -1}}},
	} {
		require.EqualError(t, l.Validate(), want)
	}
	require.NoError(t, Limits{RequestsPerMinute: maxCount, Budget: Budget{Day: 1, Week: 1, Month: 1}, OnLimit: Queue, Models: []ModelLimits{{Models: []string{"m"}}}}.Validate())
}
