package anthropic_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"sluice/internal/testkit"
	"sluice/providers"
	"sluice/providers/anthropic"
	"sluice/providers/internal/upstream"
	"sluice/providers/providertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	t.Parallel()
	providertest.Run(t, providertest.Subject{
		Dialect: &dialect{},
		New: func(t *testing.T, o providertest.Options) providers.Provider {
			t.Helper()
			p, err := anthropic.New(anthropic.Options{
				Options: upstream.Options{
					BaseURL: o.BaseURL, Keys: []upstream.Key{{Secret: providertest.APIKey}},
					Timeout: o.Timeout, IdleTimeout: o.IdleTimeout, MaxResponseBytes: o.MaxResponseBytes,
				},
				Models: []string{providertest.Model},
			})
			require.NoError(t, err)
			return p
		},
	})
}

// dialect is the scripted upstream's mother tongue. It remembers which streams it has
// opened.
type dialect struct{ opened sync.Map }

func (d *dialect) Answer(c *testkit.Call, tokens ...string) {
	if !c.Streamed() {
		c.JSON(http.StatusOK, fmt.Sprintf(`{"id":"msg_1","type":"message","role":"assistant","model":%s,`+
			`"content":[{"type":"text","text":%s}],"stop_reason":"end_turn","stop_sequence":null,`+
			`"usage":{"input_tokens":%d,"output_tokens":%d}}`,
			quote(c.Model()), quote(strings.Join(tokens, "")), providertest.PromptTokens, len(tokens)))
		return
	}
	for _, token := range tokens {
		d.Token(c, token)
	}
	c.Raw(event(`{"type":"content_block_stop","index":0}`) +
		event(`{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":`+fmt.Sprint(len(tokens))+`}}`) +
		event(`{"type":"message_stop"}`))
}

// Token sends the opening of the stream along with its first token, as the service does.
func (d *dialect) Token(c *testkit.Call, token string) {
	c.Stream()
	opening := ""
	if _, open := d.opened.LoadOrStore(c, true); !open {
		opening = event(fmt.Sprintf(`{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":%s,`+
			`"content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":%d,"output_tokens":1}}}`,
			quote(c.Model()), providertest.PromptTokens)) +
			event(`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`) +
			event(`{"type":"ping"}`)
	}
	c.Raw(opening + event(`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":`+quote(token)+`}}`))
}

func (d *dialect) Refuse(c *testkit.Call) {
	if !c.Streamed() {
		c.JSON(http.StatusOK, `{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[],"stop_reason":"refusal",`+
			`"stop_details":{"explanation":"I must not."},"usage":{"input_tokens":7,"output_tokens":1}}`)
		return
	}
	c.Stream()
	c.Raw(event(`{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[],"usage":{"input_tokens":7,"output_tokens":1}}}`) +
		event(`{"type":"message_delta","delta":{"stop_reason":"refusal","stop_details":{"explanation":"I must not."}},"usage":{"output_tokens":1}}`) +
		event(`{"type":"message_stop"}`))
}

func (d *dialect) TooLong(c *testkit.Call) {
	c.JSON(http.StatusBadRequest, failure("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"))
}

func (d *dialect) Fail(c *testkit.Call, status int, message string) {
	kind, known := map[int]string{
		400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
		404: "not_found_error", 413: "request_too_large", 422: "invalid_request_error", 429: "rate_limit_error",
		504: "timeout_error", 529: "overloaded_error",
	}[status]
	if !known {
		kind = "api_error"
	}
	c.JSON(status, failure(kind, message))
}

// event frames the data of one event as the service does, with the type as its name.
func event(data string) string {
	var e struct {
		Type string `json:"type"`
	}
	_ = json.Unmarshal([]byte(data), &e) // odd data is what some scripts are about
	return "event: " + e.Type + "\ndata: " + data + "\n\n"
}

func failure(kind, message string) string {
	return `{"type":"error","error":{"type":"` + kind + `","message":` + quote(message) + `},"request_id":"req_1"}`
}

func quote(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		return `""`
	}
	return string(text)
}
