package upstream

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What could not be sent is refused before anything is, and no secret is shown.
func TestOptionsThatCannotBeSent(t *testing.T) {
	t.Parallel()
	key := []Key{{Secret: "hunter2"}}
	for name, o := range map[string]Options{
		"no address":         {},
		"credentials":        {BaseURL: "https://user:hunter2@host"},
		"no URL":             {BaseURL: "https://hunter2\x7f"},
		"header's name":      {Headers: map[string]string{"X Org": "hunter2"}},
		"no header's name":   {Headers: map[string]string{"": "hunter2"}},
		"header with (":      {Headers: map[string]string{"X(": "hunter2"}},
		"header's value":     {Headers: map[string]string{"X-Org": "hunter2\n"}},
		"key":                {Keys: []Key{{Secret: "hunter2\n"}}},
		"key's header":       {Keys: key, KeyHeader: "X Key"},
		"what is before it":  {Keys: key, KeyHeader: "X-Key", KeyPrefix: "Bearer\t"},
		"proxy is no proxy":  {Proxy: "hunter2"},
		"proxy without host": {Proxy: "http://"},
	} {
		if o.BaseURL == "" && name != "no address" {
			o.BaseURL = "https://host"
		}
		_, err := New(o)
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), "hunter2", name)
	}
	c, err := New(Options{BaseURL: " https://host/v1#top ", Keys: key, Headers: map[string]string{"x-org": "org one"}})
	require.NoError(t, err)
	require.Equal(t, "https://host/v1/x", c.At("x").String())
	require.NoError(t, c.Close())
}
