package config

import (
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strings"
)

// mask stands for a secret wherever one would be printed. It needs no escaping in
// a URL, in YAML or in JSON.
const mask = "xxxxx"

// Secret is text that must not be seen: every way to print, log or marshal it
// gives a mask. Empty stays empty, so that an unset secret can be told from a set
// one.
type Secret string

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return mask
}

// GoString masks %#v.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// Format masks every verb, also those that do not fit a string, for which fmt
// would otherwise print the raw value in its complaint.
func (s Secret) Format(f fmt.State, verb rune) { format(f, verb, s.String()) }

// MarshalText masks JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue masks slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// URL is an address, or several with commas between them, that may carry a
// password. Printed, logged or marshalled it shows the address with the secret
// parts masked.
type URL string

// Reveal returns the address with its secret parts.
func (u URL) Reveal() string { return string(u) }

func (u URL) String() string {
	if u == "" {
		return ""
	}
	parts := splitURLs(string(u))
	for i, part := range parts {
		parts[i] = maskURL(part)
	}
	return strings.Join(parts, ",")
}

// GoString masks %#v.
func (u URL) GoString() string { return fmt.Sprintf("%q", u.String()) }

// Format masks every verb.
func (u URL) Format(f fmt.State, verb rune) { format(f, verb, u.String()) }

// MarshalText masks JSON and YAML.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// LogValue masks slog.
func (u URL) LogValue() slog.Value { return slog.StringValue(u.String()) }

// splitURLs splits a list of addresses. A comma that is not followed by another
// scheme belongs to the address before it: Postgres lists its hosts that way, and
// a password may hold one.
func splitURLs(text string) []string {
	parts := strings.Split(text, ",")
	for _, part := range parts {
		if !strings.Contains(part, "://") {
			return []string{strings.TrimSpace(text)}
		}
	}
	for i, part := range parts {
		parts[i] = strings.TrimSpace(part)
	}
	return parts
}

func format(w io.Writer, verb rune, shown string) {
	if verb == 'q' {
		shown = fmt.Sprintf("%q", shown)
	}
	// A fmt.State keeps what is written to it in memory: there is no error to handle.
	_, _ = io.WriteString(w, shown)
}

// maskURL shows what is certainly no secret. A text that is no URL with a host is
// masked as a whole: nobody can tell where its secret would stand.
func maskURL(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" || u.Opaque != "" || u.Host == "" {
		return mask
	}
	u.User = maskUser(u)
	u.RawQuery = maskQuery(u.Query())
	u.Fragment = ""
	return u.String()
}

// maskUser keeps a user's name. A name without a password is a token for NATS and
// for HTTP, and an ordinary user for Postgres.
func maskUser(u *url.URL) *url.Userinfo {
	if u.User == nil {
		return nil
	}
	if _, has := u.User.Password(); has {
		return url.UserPassword(u.User.Username(), mask)
	}
	if isPostgres(u.Scheme) {
		return u.User
	}
	return url.User(mask)
}

// maskQuery keeps the parameters that are known to be harmless, in sorted order.
func maskQuery(query url.Values) string {
	harmless := []string{"sslmode", "api-version", "application_name", "connect_timeout", "search_path"}
	for name := range query {
		if !slices.Contains(harmless, name) {
			query[name] = []string{mask}
		}
	}
	return query.Encode()
}

func isPostgres(scheme string) bool { return scheme == "postgres" || scheme == "postgresql" }
