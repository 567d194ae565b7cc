package config

import (
	"maps"
	"slices"

	"sluice/providers"
)

// upstream checks what is sent with each call. The rules are those of the adapters, which
// would refuse the same, and could not say where it stands.
func (v *validator) upstream(p Provider, at path) {
	if p.BaseURL != "" {
		if _, err := providers.ParseBaseURL(p.BaseURL.Reveal()); err != nil {
			v.wrong(err.Error(), at.with("base_url")...)
		}
	}
	v.inHeader(p.APIKey.Reveal(), at.with("api_key"))
	for i, k := range p.APIKeys {
		v.inHeader(k.Key.Reveal(), at.with("api_keys").at(i).with("key"))
	}
	for _, name := range slices.Sorted(maps.Keys(p.Headers)) {
		where := at.with("headers").with(name)
		if !providers.ValidHeaderName(name) {
			v.wrong("must have the name of a header as its key: letters, digits and -, without spaces", where...)
		}
		v.inHeader(p.Headers[name].Reveal(), where)
	}
	if p.Custom == nil {
		return
	}
	if header := p.Custom.KeyHeader; header != "" && !providers.ValidHeaderName(header) {
		v.wrong("must be the name of a header, such as Authorization", at.with("custom").with("key_header")...)
	}
	v.inHeader(p.Custom.KeyPrefix, at.with("custom").with("key_prefix"))
}

func (v *validator) inHeader(text string, at path) {
	if !providers.ValidHeaderValue(text) {
		v.wrong("must hold no control character, such as the end of a line, and nothing but ASCII: it is sent in a header", at...)
	}
}
