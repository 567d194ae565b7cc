package providers

import (
	"errors"
	"net/url"
	"regexp"
	"strings"
)

// What every call of an upstream over HTTP needs of its settings stands here, so that a
// configuration is checked by the same rules that the adapters go by.

var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$") // a token (RFC 9110, 5.6.2)

// ParseBaseURL reads the address of an upstream's API. Its error says what the address must
// be and shows nothing of it.
func ParseBaseURL(text string) (*url.URL, error) {
	base, err := url.Parse(strings.TrimSpace(text))
	switch {
	case err != nil, base.Scheme != "http" && base.Scheme != "https", base.Host == "":
		return nil, errors.New("must be an http or https address, such as https://api.openai.com/v1") // the parser's error quotes it, secrets and all
	case base.User != nil:
		return nil, errors.New("must not hold credentials; set an API key or a header instead")
	}
	return base, nil
}

// ValidHeaderName reports whether text can be the name of a header.
func ValidHeaderName(text string) bool { return headerName.MatchString(text) }

// ValidHeaderValue reports whether text can stand in a header everywhere: ASCII without
// control characters.
func ValidHeaderValue(text string) bool {
	for i := range len(text) {
		if text[i] < 0x20 || text[i] > 0x7e {
			return false
		}
	}
	return true
}
