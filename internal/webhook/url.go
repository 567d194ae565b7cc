package webhook

import (
	"errors"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxURLBytes bounds the address of an endpoint.
const MaxURLBytes = 2048

// CheckURL returns what is wrong with an endpoint's address, in words that never quote
// it: an address may hold a receiver's token. allowPrivate lets it be plain http and an
// address of a private network, for development.
//
// It looks at the text alone. What a name stands for may change at any moment, so the
// address that it stands for is checked when it is called.
func CheckURL(text string, allowPrivate bool) error {
	switch {
	case text == "":
		return errors.New("is empty")
	case len(text) > MaxURLBytes:
		return errors.New("is longer than " + strconv.Itoa(MaxURLBytes) + " bytes")
	case !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }):
		return errors.New("holds a character that no address may have")
	}
	u, err := url.Parse(text)
	if err != nil {
		return errors.New("is not a URL")
	}
	switch {
	case u.Scheme != "https" && !allowPrivate:
		return errors.New("must begin with https://")
	case u.Scheme != "https" && u.Scheme != "http":
		return errors.New("must begin with https:// or http://")
	case u.Opaque != "" || u.Hostname() == "":
		return errors.New("names no host")
	case u.User != nil:
		return errors.New("must not hold a user name or a password")
	case strings.Contains(text, "#"):
		return errors.New("must not have a fragment, which is never sent")
	case !validPort(u):
		return errors.New("must have a port from 1 to 65535, or none")
	case !allowPrivate && literalPrivate(u.Hostname()):
		return ErrForbidden
	}
	return nil
}

// validPort reports whether the address has a port that can be dialled, or none.
func validPort(u *url.URL) bool {
	if u.Port() == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	return err == nil && n > 0
}

// literalPrivate reports whether the host is written as an address that may not be
// called, or as this machine's own name.
func literalPrivate(host string) bool {
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && !IsPublic(a)
}

// Lane names the queue of deliveries to an address that is no endpoint's, so that those
// to one host wait for each other and for nobody else.
func Lane(tenant, address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return tenant + " "
	}
	return tenant + " " + strings.ToLower(u.Host)
}
