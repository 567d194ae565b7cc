package webhook

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Secret is what both sides sign with: "whsec_" and the base64 of 24 to 64 random
// bytes. It shows itself to Reveal alone.
type Secret string

const (
	secretPrefix   = "whsec_"
	secretBytes    = 32
	minSecretBytes = 24
	maxSecretBytes = 64
	masked         = secretPrefix + "…"
)

// ErrSecret says that a text is no secret of a webhook.
var ErrSecret = errors.New("must be whsec_ and the base64 of 24 to 64 bytes")

// NewSecret returns a new secret.
func NewSecret() Secret {
	var b [secretBytes]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
	return Secret(secretPrefix + base64.StdEncoding.EncodeToString(b[:]))
}

// Check returns ErrSecret unless the secret has the form that verifiers ask for.
func (s Secret) Check() error {
	encoded, ok := strings.CutPrefix(string(s), secretPrefix)
	key, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if !ok || err != nil || len(key) < minSecretBytes || len(key) > maxSecretBytes || strings.ContainsAny(encoded, "\r\n") {
		return ErrSecret // without the decoder's words, which quote the text
	}
	return nil
}

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }

// String implements fmt.Stringer without showing the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return masked
}

// GoString implements fmt.GoStringer without showing the secret.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// LogValue implements slog.LogValuer without showing the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText implements encoding.TextMarshaler without showing the secret, so that no
// listing can: an answer that has to show one reveals it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Sign sets the headers of one attempt to deliver the event id: webhook-id,
// webhook-timestamp, and webhook-signature with one signature for each secret. A
// receiver accepts any of them, so that it may change its own secret at any time while
// two are valid.
func Sign(h http.Header, id string, at time.Time, body []byte, secrets ...Secret) error {
	if len(secrets) == 0 {
		return fmt.Errorf("sign event %s: there is no secret", id)
	}
	signatures := make([]string, len(secrets))
	for i, s := range secrets {
		if err := s.Check(); err != nil {
			return fmt.Errorf("sign event %s: secret %d %w", id, i+1, err)
		}
		signer, err := standardwebhooks.NewWebhook(s.Reveal())
		if err != nil {
			return fmt.Errorf("sign event %s: secret %d %w", id, i+1, ErrSecret)
		}
		if signatures[i], err = signer.Sign(id, at, body); err != nil {
			return fmt.Errorf("sign event %s: %w", id, err)
		}
	}
	h.Set(standardwebhooks.HeaderWebhookID, id)
	h.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(at.Unix(), 10))
	h.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	return nil
}
