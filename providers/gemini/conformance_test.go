package gemini_test

import (
	"bytes"
	"fmt"
	"io"
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
			own, err := upstream.NewTransport(false, "")
			require.NoError(t, err)
			t.Cleanup(own.CloseIdleConnections)
			p, err := gemini.New(gemini.Options{
				Options: upstream.Options{
					Name: "gemini", BaseURL: o.BaseURL, Keys: []upstream.Key{{Secret: providertest.APIKey}},
					Timeout: o.Timeout, IdleTimeout: o.IdleTimeout, MaxResponseBytes: o.MaxResponseBytes,
					Transport: streamMarker{own},
				},
				Models: []string{providertest.Model},
			})
			require.NoError(t, err)
			return p
		},
	})
}

// streamMarker tells the scripted upstream which calls want a stream. It looks for that
// in the body, where this API does not have it.
type streamMarker struct{ http.RoundTripper }

func (m streamMarker) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, ":streamGenerateContent") {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		body = append([]byte(`{"stream":true,`), body[1:]...)
		r.ContentLength = int64(len(body))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		r.Body, _ = r.GetBody()
	}
	return m.RoundTripper.RoundTrip(r)
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
