package sim_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"sluice/providers"
	"sluice/providers/providertest"
	"sluice/providers/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	t.Parallel()
	providertest.Run(t, providertest.Subject{
		New: func(t *testing.T, o providertest.Options) providers.Provider {
			t.Helper()
			p, err := sim.New(sim.Options{
				Models: []string{providertest.Model}, CompletionTokens: 20,
				FirstTokenDelay: o.FirstTokenDelay, TokensPerSecond: o.TokensPerSecond,
			})
			require.NoError(t, err)
			return p
		},
	})
}
