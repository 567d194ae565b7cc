package config

import (
	"regexp"
	"strconv"
	"strings"

	"sluice/providers"
)

// An origin is what a browser sends of a page's address: scheme, host and port, and
// nothing behind. A * stands in the first label of the host, or for the port: anywhere
// else it would let in hosts of other owners.
var corsOrigin = regexp.MustCompile(`^[a-z][a-z0-9+.-]*://(\*\.|[a-z0-9-]*\*[a-z0-9-]*\.)?([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:([0-9]{1,5}|\*))?$`)

// cors checks which pages may call.
func (v *validator) cors() {
	c := v.config.Server.CORS
	at := path{"server", "cors"}
	seen := make(map[string]bool)
	for i, origin := range c.AllowedOrigins {
		lower := strings.ToLower(origin)
		switch {
		case origin == "*" && c.AllowCredentials:
			v.wrong(`must not be "*" together with allow_credentials: any page could then act as whoever looks at it`, at.with("allowed_origins").at(i)...)
		case origin == "*":
		case strings.Count(origin, "*") > 1, !corsOrigin.MatchString(lower):
			v.wrong(`must be scheme://host or scheme://host:port without a path, such as https://chat.example.com or https://*.example.com, with one * at most; "*" alone is any`, at.with("allowed_origins").at(i)...)
		case openOrigin(lower):
			v.wrong("has a * right under a top level, where the hosts are other people's; name one label more, such as https://*.example.com", at.with("allowed_origins").at(i)...)
		case !portOfOrigin(lower):
			v.wrong("must have a port from 1 to 65535, or * for any", at.with("allowed_origins").at(i)...)
		case seen[lower]:
			v.wrong("is an earlier origin; each stands once", at.with("allowed_origins").at(i)...)
		}
		seen[lower] = true
	}
	for name, headers := range map[string][]string{"allowed_headers": c.AllowedHeaders, "exposed_headers": c.ExposedHeaders} {
		for i, header := range headers {
			if !providers.ValidHeaderName(header) || header == "*" && c.AllowCredentials {
				v.wrong("must be the name of a header; with allow_credentials * stands for none", at.with(name).at(i)...)
			}
		}
	}
	if c.AllowCredentials && len(c.AllowedOrigins) == 0 {
		v.wrong("is of no use without allowed_origins", at.with("allow_credentials")...)
	}
}

// openOrigin reports whether the * of an origin stands for hosts that nobody owns together:
// those of a top level, or addresses. Below localhost all are this machine.
func openOrigin(origin string) bool {
	_, host, _ := strings.Cut(origin, "://")
	host, _, _ = strings.Cut(host, ":")
	first, domain, _ := strings.Cut(host, ".")
	if !strings.Contains(first, "*") || domain == "localhost" {
		return false
	}
	last := domain[strings.LastIndexByte(domain, '.')+1:]
	return last == domain || strings.Trim(last, "0123456789") == ""
}

// portOfOrigin reports whether a browser could send the port of an origin, if it has one.
func portOfOrigin(origin string) bool {
	colon := strings.LastIndexByte(origin, ':')
	port := origin[colon+1:]
	if port == "*" || strings.HasPrefix(port, "//") || strings.HasSuffix(port, "]") {
		return true
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0 && port[0] != '0'
}
