package openai_test

import (
	"net/http"
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
	for name, change := range map[string]func(*openai.Options){
		"openai": func(*openai.Options) {},
		"custom": func(o *openai.Options) {
			o.Paths = openai.Paths{Own: true, Chat: "/talk"}
			o.KeyHeader, o.KeyPrefix = "x-token", "T "
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			providertest.Run(t, providertest.Subject{
				Dialect: dialect{},
				New: func(t *testing.T, o providertest.Options) providers.Provider {
					t.Helper()
					opts := openai.Options{
						Options: upstream.Options{
							Name: name, BaseURL: o.BaseURL, Keys: []upstream.Key{{Secret: providertest.APIKey}},
							Timeout: o.Timeout, IdleTimeout: o.IdleTimeout, MaxResponseBytes: o.MaxResponseBytes,
						},
						Models: []string{providertest.Model},
					}
					change(&opts)
					p, err := openai.New(opts)
					require.NoError(t, err)
					return p
				},
			})
		})
	}
}

// dialect is the scripted upstream's mother tongue.
type dialect struct{}

func (dialect) Answer(c *testkit.Call, tokens ...string) { c.Reply(tokens...) }
func (dialect) Token(c *testkit.Call, token string)      { c.Delta(token) }
func (dialect) Refuse(c *testkit.Call) {
	if c.Streamed() {
		c.Chunk(`{"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`)
		c.Finish("content_filter")
		c.Done()
		return
	}
	c.JSON(http.StatusOK, `{"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":null},"finish_reason":"content_filter"}]}`)
}

func (dialect) TooLong(c *testkit.Call) {
	c.JSON(http.StatusBadRequest, `{"error":{"message":"This is too long.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}`)
}

func (dialect) Fail(c *testkit.Call, status int, message string) { c.Fail(status, message) }
