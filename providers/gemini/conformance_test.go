package gemini_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"sluice/internal/testkit"
	"sluice/providers"
	"sluice/providers/gemini"
	"sluice/providers/internal/upstream"
	"sluice/providers/providertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	t.Parallel()
	providertest.Run(t, providertest.Subject{
		Dialect: dialect{},
		New: func(t *testing.T, o providertest.Options) providers.Provider {
			t.Helper()
			p, err := gemini.New(gemini.Options{
				Options: upstream.Options{
					Name: "gemini", BaseURL: o.BaseURL, Keys: []upstream.Key{{Secret: providertest.APIKey}},
					Timeout: o.Timeout, IdleTimeout: o.IdleTimeout, MaxResponseBytes: o.MaxResponseBytes,
				},
				Models: []string{providertest.Model},
			})
			require.NoError(t, err)
			return p
		},
	})
}

// dialect is the scripted upstream's mother tongue.
type dialect struct{}

func (dialect) Answer(c *testkit.Call, tokens ...string) {
	if !isStream(c) {
		c.JSON(http.StatusOK, event(modelOf(c), strings.Join(tokens, ""), "STOP", len(tokens)))
		return
	}
	for i, token := range tokens {
		reason := ""
		if i == len(tokens)-1 {
			reason = "STOP"
		}
		c.Chunk(event(modelOf(c), token, reason, i+1))
	}
}

func (dialect) Token(c *testkit.Call, token string) { c.Chunk(event(modelOf(c), token, "", 1)) }

var statuses = map[int]string{
	400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ABORTED",
	429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}

func (dialect) Refuse(c *testkit.Call) {
	answer := `{"candidates":[{"content":{},"finishReason":"PROHIBITED_CONTENT","index":0}],"usageMetadata":{"promptTokenCount":7},"modelVersion":"m"}`
	if isStream(c) {
		c.Chunk(answer)
		return
	}
	c.JSON(http.StatusOK, answer)
}

func (d dialect) TooLong(c *testkit.Call) {
	d.Fail(c, http.StatusBadRequest, "The input token count (2551556) exceeds the maximum number of tokens allowed (1048576).")
}

func (dialect) Fail(c *testkit.Call, status int, message string) {
	c.JSON(status, fmt.Sprintf(`{"error":{"code":%d,"message":%s,"status":%q}}`, status, strconv.Quote(message), statuses[status]))
}

func isStream(c *testkit.Call) bool { return strings.HasSuffix(c.Path, ":streamGenerateContent") }

func modelOf(c *testkit.Call) string {
	name, _, _ := strings.Cut(c.Path[strings.LastIndex(c.Path, "/")+1:], ":")
	return name
}

// event is one GenerateContentResponse with a text.
func event(model, text, reason string, tokens int) string {
	finish := ""
	if reason != "" {
		finish = fmt.Sprintf(`,"finishReason":%q`, reason)
	}
	return fmt.Sprintf(`{"candidates":[{"content":{"parts":[{"text":%s}],"role":"model"},"index":0%s}],`+
		`"usageMetadata":{"promptTokenCount":%d,"candidatesTokenCount":%d,"totalTokenCount":%d},"modelVersion":%q,"responseId":"answer-1"}`,
		strconv.Quote(text), finish, providertest.PromptTokens, tokens, providertest.PromptTokens+tokens, model)
}
