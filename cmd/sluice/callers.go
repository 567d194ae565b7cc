package main

import (
	"sluice/ingress"
	"sluice/internal/config"
	"sluice/internal/token"
)

// tokenIssuers is whose tokens are taken, in the words of package token.
func tokenIssuers(cfg *config.Config) []token.Issuer {
	issuers := make([]token.Issuer, 0, len(cfg.Auth.JWT))
	for _, j := range cfg.Auth.JWT {
		issuer := token.Issuer{
			Issuer: j.Issuer, Audiences: j.Audiences, KeysURL: j.JWKSURL.Reveal(), Algorithms: j.Algorithms,
			Refresh: j.Refresh, Leeway: j.Leeway, SubjectClaim: j.SubjectClaim, TenantClaim: j.TenantClaim, Tenant: j.Tenant,
			ModelsClaim: j.ModelsClaim, LimitsClaim: j.LimitsClaim, Limits: ownLimits(j.Limits),
		}
		issuers = append(issuers, issuer)
	}
	return issuers
}

// crossOrigin is which pages may call from a browser.
func crossOrigin(cfg *config.Config) *ingress.CORS {
	c := cfg.Server.CORS
	return ingress.NewCORS(ingress.CORSOptions{
		Origins: c.AllowedOrigins, Headers: c.AllowedHeaders, Exposed: c.ExposedHeaders, Credentials: c.AllowCredentials, MaxAge: c.MaxAge,
	})
}
