package config

import "time"

// Auth configures who may call.
type Auth struct {
	// Keys that are valid beside those in the database.
	Keys []StaticKey `yaml:"keys" side:"ingress"`
	// Tenants that have limits. They count before those in the database.
	Tenants []Tenant `yaml:"tenants" side:"ingress" max:"10000"`
	// Tokens of identity providers, taken beside API keys.
	JWT []JWT `yaml:"jwt" side:"ingress" max:"16"`
}

// StaticKey is an API key that the configuration carries.
type StaticKey struct {
	// Name of the key in logs and in the ledger, unique in this list.
	Name string `yaml:"name"`
	// The key itself, 16 characters or more.
	Key Secret `yaml:"key"`
	// Tenant that the key's usage counts for.
	Tenant string `yaml:"tenant" default:"default"`
	// Models that the key may use, as names or globs. Empty: all.
	Models []string `yaml:"models"`
	// When the key ends, as an RFC 3339 time. Not given: never.
	ExpiresAt time.Time `yaml:"expires_at"`
	// What the key may take. Not given, or nothing bounded: what rate_limit.key says.
	Limits *Limits `yaml:"limits"`
}

// Tenant is a tenant with limits.
type Tenant struct {
	// Name of the tenant, unique in this list.
	Name string `yaml:"name"`
	// What all of its keys together may take. Nothing bounded: what rate_limit.tenant says.
	Limits Limits `yaml:"limits"`
}

// JWT configures the tokens of one issuer (RFC 7519) that clients send in place of a key.
type JWT struct {
	// The issuer, as the claim iss has it.
	Issuer string `yaml:"issuer"`
	// Audiences of which the claim aud must hold one.
	Audiences []string `yaml:"audiences" max:"100"`
	// Address of the issuer's keys (a JWK Set, RFC 7517).
	JWKSURL URL `yaml:"jwks_url"`
	// Signature algorithms that are taken.
	Algorithms []string `yaml:"algorithms" default:"RS256,ES256,EdDSA" oneof:"RS256,RS384,RS512,PS256,PS384,PS512,ES256,ES384,ES512,EdDSA" max:"10"`
	// How long the issuer's keys are used before they are read again. One that is not known is looked for at once.
	Refresh time.Duration `yaml:"refresh" default:"15m" min:"10s" max:"24h"`
	// How far the clocks of the issuer and of the ingress may differ.
	Leeway time.Duration `yaml:"leeway" default:"30s" min:"0s" max:"5m"`
	// Claim that names the tenant. One inside another claim is written with points, such as org.id.
	TenantClaim string `yaml:"tenant_claim" default:"tenant"`
	// Tenant of tokens without that claim. Empty: they are refused.
	Tenant string `yaml:"tenant"`
	// Claim that identifies the caller in logs, limits and the ledger.
	SubjectClaim string `yaml:"subject_claim" default:"sub"`
	// Claim with the models that the caller may use, as a list of names or globs or as text with spaces between them. Empty, or no such claim: all.
	ModelsClaim string `yaml:"models_claim" default:""`
	// Claim with the caller's limits, an object with the names that limits have here. Empty, no such claim, or nothing bounded by it: what limits says.
	LimitsClaim string `yaml:"limits_claim" default:""`
	// What each caller may take. Not given, or nothing bounded: what rate_limit.key says.
	Limits *Limits `yaml:"limits"`
}

// CORS configures which pages of other origins may call from a browser.
type CORS struct {
	// Origins, such as https://chat.example.com, or with a * in the first label (https://*.example.com) or for the port (http://localhost:*); "*" alone is any. Empty: none, and no header is sent.
	AllowedOrigins []string `yaml:"allowed_origins" max:"1000"`
	// Request headers that pages may send beside those of the API's clients.
	AllowedHeaders []string `yaml:"allowed_headers" max:"100"`
	// Answer headers that pages may read beside those that Sluice sends.
	ExposedHeaders []string `yaml:"exposed_headers" max:"100"`
	// Whether browsers may send cookies and certificates. Not together with the origin "*".
	AllowCredentials bool `yaml:"allow_credentials" default:"false"`
	// How long a browser may remember what it was told.
	MaxAge time.Duration `yaml:"max_age" default:"10m" min:"0s" max:"24h"`
}
