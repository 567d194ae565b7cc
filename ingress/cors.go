package ingress

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rs/cors"
)

// CORSOptions say which pages of other origins may call from a browser.
type CORSOptions struct {
	Origins     []string // each with one * at most, in the first label or for the port; "*" is any
	Headers     []string // of requests, beside those of the API's clients
	Exposed     []string // of answers, beside those that Sluice sends
	Credentials bool
	MaxAge      time.Duration
}

// CORS is the rules of the Fetch standard for pages of other origins. It is not changed.
type CORS struct{ rules *cors.Cors }

// What pages may send: the methods of the API, and the headers that its clients send and
// that Sluice knows. A client of OpenAI's tells with each request what it runs on.
var (
	corsMethods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodDelete}
	corsHeaders = []string{
		"Accept", "Authorization", "Cache-Control", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer", "Range", "If-Range",
		requestIDHeader, "Traceparent", "Tracestate", "OpenAI-Organization", "OpenAI-Project", "OpenAI-Beta",
		"X-Stainless-Arch", "X-Stainless-Async", "X-Stainless-Custom-Poll-Interval", "X-Stainless-Helper-Method", "X-Stainless-Lang", "X-Stainless-OS",
		"X-Stainless-Package-Version", "X-Stainless-Poll-Helper", "X-Stainless-Raw-Response", "X-Stainless-Read-Timeout",
		"X-Stainless-Retry-Count", "X-Stainless-Runtime", "X-Stainless-Runtime-Version", "X-Stainless-Timeout",
		"X-Sluice-Cache", "X-Sluice-Resume-Window", "X-Sluice-Timeout", "X-Sluice-Webhook",
	}
	corsExposed = []string{
		"Accept-Ranges", "Age", "Allow", "Content-Disposition", "Content-Length", "Content-Range", "ETag", "Location", "Preference-Applied", "Retry-After", "Retry-After-Ms", "WWW-Authenticate",
		requestIDHeader, replayedHeader, "X-Should-Retry",
		"X-RateLimit-Limit-Requests", "X-RateLimit-Limit-Tokens", "X-RateLimit-Remaining-Requests",
		"X-RateLimit-Remaining-Tokens", "X-RateLimit-Reset-Requests", "X-RateLimit-Reset-Tokens",
		"X-Sluice-Attempts", "X-Sluice-Cache", "X-Sluice-Dropped-Params", "X-Sluice-Eta", "X-Sluice-Failed-Attempts",
		"X-Sluice-Job-Id", "X-Sluice-Provider", "X-Sluice-Queue-Ms",
	}
)

// anyOrigin stands for all pages.
const anyOrigin = "*"

// NewCORS returns the rules, or nil if no page may call.
func NewCORS(o CORSOptions) *CORS {
	if len(o.Origins) == 0 {
		return nil
	}
	age := int(o.MaxAge / time.Second)
	if age == 0 {
		age = -1 // it is said to be 0, which is not a browser's default
	}
	rules := cors.Options{
		AllowedMethods: corsMethods, AllowedHeaders: slices.Concat(corsHeaders, o.Headers),
		ExposedHeaders: slices.Concat(corsExposed, o.Exposed), AllowCredentials: o.Credentials, MaxAge: age,
	}
	if slices.Contains(o.Origins, anyOrigin) {
		rules.AllowedOrigins = []string{anyOrigin}
	} else {
		rules.AllowOriginFunc = originRules(o.Origins)
	}
	return &CORS{rules: cors.New(rules)}
}

// apiPaths begin the path of everything that clients call. The rest is for operators, and
// no page reads it.
const apiPaths = "/v1/"

// crossOrigin lets pages of the configured origins call the API. A preflight is answered
// here: it carries no key. Every other answer gets its headers before anything is decided,
// so that a page can read a refusal too.
func (s *Ingress) crossOrigin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		policy := s.settingsOf(r).CORS
		if policy == nil || !strings.HasPrefix(r.URL.Path, apiPaths) {
			next.ServeHTTP(w, r)
			return
		}
		policy.rules.ServeHTTP(w, r, next.ServeHTTP)
	})
}
