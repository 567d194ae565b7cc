package inference

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCost(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Cost{
		"0": 0, "12": 12_000_000_000, "12.50": 12_500_000_000, "0.000000001": 1, "0.1": 100_000_000, "9223372035.999999999": 9223372035_999999999,
	} {
		got, err := ParseCost(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		again, err := ParseCost(got.String())
		require.NoError(t, err)
		require.Equal(t, got, again)
	}
	for _, text := range []string{"", ".", "1.", ".5", "-1", "+1", "1e3", "0.0000000001", "9223372036", "99999999999999999999", "1_0", "٣"} {
		_, err := ParseCost(text)
		require.Error(t, err, text)
	}
	require.Equal(t, "12.5", Cost(12_500_000_000).String())
	require.Equal(t, "-0.000000001", Cost(-1).String())
	require.Equal(t, "-9223372036.854775808", Cost(math.MinInt64).String())
	require.Equal(t, "100", Cost(100_000_000_000).String())
}

func TestCostInJSON(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(Cost(12_500_000_000))
	require.NoError(t, err)
	require.Equal(t, "12.5", string(data))
	var c Cost
	require.NoError(t, json.Unmarshal([]byte(`"0.25"`), &c))
	require.Equal(t, Cost(250_000_000), c)
	require.NoError(t, json.Unmarshal([]byte(`3`), &c))
	require.Equal(t, Cost(3_000_000_000), c)
	require.Error(t, json.Unmarshal([]byte(`null`), &c))
	require.Error(t, json.Unmarshal([]byte(`-2`), &c))
}
