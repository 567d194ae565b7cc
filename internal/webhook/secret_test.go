package webhook

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"
)

func TestSecrets(t *testing.T) {
	t.Parallel()
	first, second := NewSecret(), NewSecret()
	require.NotEqual(t, first, second)
	require.NoError(t, first.Check())
	of := func(n int) Secret {
		return Secret("whsec_" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", n))))
	}
	for _, good := range []Secret{of(24), of(64)} {
		require.NoError(t, good.Check())
	}
	for _, bad := range []Secret{"", "whsec_", of(23), of(65), of(32)[6:], of(32) + "\n", "whsec_!!!", of(32)[:20]} {
		require.ErrorIs(t, bad.Check(), ErrSecret, bad.Reveal())
	}
}

func TestASecretShowsItselfToNobody(t *testing.T) {
	t.Parallel()
	s := NewSecret()
	text, err := json.Marshal(map[string]any{"s": s, "list": []Secret{s}})
	require.NoError(t, err)
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "message", Message{Secrets: []Secret{s}})
	shown := string(text) + log.String() + fmt.Sprintf("%v %+v %#v %s %q", s, Message{Secrets: []Secret{s}}, s, s, s)
	require.NotContains(t, shown, s.Reveal()[6:12])
	require.Contains(t, shown, masked)
	require.Empty(t, Secret("").String())
}

// signed returns an event's body and headers, as they are sent.
func signed(t *testing.T, at time.Time, secrets ...Secret) ([]byte, http.Header) {
	t.Helper()
	body, err := Body("evt_1", BatchCompleted, "batch_1", at)
	require.NoError(t, err)
	h := make(http.Header)
	require.NoError(t, Sign(h, "evt_1", at, body, secrets...))
	return body, h
}

// verifiers are those of the specification's own library and of OpenAI's.
var verifiers = map[string]func(s Secret, body []byte, h http.Header) error{
	"standard webhooks": func(s Secret, body []byte, h http.Header) error {
		v, err := standardwebhooks.NewWebhook(s.Reveal())
		if err != nil {
			return err
		}
		return v.Verify(body, h)
	},
	"openai": func(s Secret, body []byte, h http.Header) error {
		client := openai.NewClient(option.WithAPIKey("sk-unused"), option.WithWebhookSecret(s.Reveal()))
		_, err := client.Webhooks.Unwrap(body, h)
		return err
	},
}

func TestSignaturesAreVerified(t *testing.T) {
	t.Parallel()
	fresh, old, stranger := NewSecret(), NewSecret(), NewSecret()
	for name, verify := range verifiers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body, h := signed(t, time.Now(), fresh, old)
			require.Len(t, strings.Fields(h.Get("webhook-signature")), 2)
			require.NoError(t, verify(fresh, body, h))
			require.NoError(t, verify(old, body, h), "both are valid during a rotation")
			require.Error(t, verify(stranger, body, h), "a wrong secret")
			require.Error(t, verify(fresh, append(body, ' '), h), "an altered body")
			require.Error(t, verify(fresh, []byte(strings.Replace(string(body), "batch_1", "batch_2", 1)), h))

			other := h.Clone()
			other.Set("webhook-id", "evt_2")
			require.Error(t, verify(fresh, body, other), "another id")
			other = h.Clone()
			other.Set("webhook-timestamp", fmt.Sprint(time.Now().Unix()+60))
			require.Error(t, verify(fresh, body, other), "another time")
			body, h = signed(t, time.Now().Add(-6*time.Minute), fresh)
			require.Error(t, verify(fresh, body, h), "an old timestamp")
			body, h = signed(t, time.Now().Add(6*time.Minute), fresh)
			require.Error(t, verify(fresh, body, h), "a timestamp ahead")
			body, h = signed(t, time.Now(), fresh)
			require.Error(t, verify(old, body, h), "the old one once it has ended")
		})
	}
}

func TestNothingIsSentUnsigned(t *testing.T) {
	t.Parallel()
	h := make(http.Header)
	require.Error(t, Sign(h, "evt_1", time.Now(), nil))
	err := Sign(h, "evt_1", time.Now(), nil, NewSecret(), "whsec_short")
	require.ErrorIs(t, err, ErrSecret)
	require.NotContains(t, err.Error(), "short")
	require.Empty(t, h)
}

// OpenAI's library takes the event for what it is.
func TestEventsAreOpenAIs(t *testing.T) {
	t.Parallel()
	secret := NewSecret()
	client := openai.NewClient(option.WithAPIKey("sk-unused"), option.WithWebhookSecret(secret.Reveal()))
	at := time.Now()
	for _, kind := range []string{BatchCompleted, BatchFailed, BatchExpired, BatchCancelled} {
		body, err := Body("evt_1", kind, "batch_1", at)
		require.NoError(t, err)
		require.JSONEq(t, fmt.Sprintf(`{"id":"evt_1","object":"event","created_at":%d,"type":%q,"data":{"id":"batch_1"}}`, at.Unix(), kind), string(body))
		h := make(http.Header)
		require.NoError(t, Sign(h, "evt_1", at, body, secret))
		event, err := client.Webhooks.Unwrap(body, h)
		require.NoError(t, err)
		require.Equal(t, kind, event.Type)
		require.NotNil(t, event.AsAny(), "a type that it knows")
		require.Equal(t, "evt_1 batch_1", event.ID+" "+event.Data.ID)
		require.Equal(t, at.Unix(), event.CreatedAt)
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	require.NoError(t, CheckTypes(nil))
	require.NoError(t, CheckTypes(Types()))
	for _, bad := range [][]string{{""}, {"batch"}, {"batch.completed "}, {Test}, {JobFailed, JobFailed}} {
		require.Error(t, CheckTypes(bad))
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	require.Regexp(t, `^evt_[a-z2-7]{24}$`, NewEventID())
	require.Regexp(t, `^whk_[a-z2-7]{24}$`, NewEndpointID())
	first, second := NewEventID(), NewEventID()
	require.NotEqual(t, first, second)
}
