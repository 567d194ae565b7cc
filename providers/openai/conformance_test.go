package openai_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"sluice/internal/testkit"
	"sluice/providers"
	"sluice/providers/internal/upstream"
	"sluice/providers/openai"
	"sluice/providers/providertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	t.Parallel()
	providertest.Run(t, providertest.Subject{
		Dialect: dialect{},
		New: func(t *testing.T, o providertest.Options) providers.Provider {
			t.Helper()
			p, err := openai.New(openai.Options{Options: upstream.Options{Name: "openai", BaseURL: o.BaseURL, Keys: []upstream.Key{{Secret: providertest.APIKey}}, Timeout: o.Timeout, IdleTimeout: o.IdleTimeout, MaxResponseBytes: o.MaxResponseBytes}, Models: []string{providertest.Model}})
			require.NoError(t, err)
			return p
		},
	})
}

// dialect is the scripted upstream's mother tongue.
type dialect struct{}

func (dialect) Answer(c *testkit.Call, tokens ...string)         { c.Reply(tokens...) }
func (dialect) Token(c *testkit.Call, token string)              { c.Delta(token) }
func (dialect) Fail(c *testkit.Call, status int, message string) { c.Fail(status, message) }
