package token

import (
	"crypto/sha256"
	"encoding/hex"
	"math"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/json"

	"sluice/internal/limits"
	"sluice/internal/strictjson"
	"sluice/store"
)

const (
	maxSubject   = 255 // as OpenID Connect has it
	maxClaimPath = 256
	maxDate      = 1 << 40 // seconds; far beyond any date, and far within what a time can hold
)

// ValidClaim reports whether text can name a claim: its name, or several with points
// between them, each inside the one before.
func ValidClaim(text string) bool {
	if text == "" || len(text) > maxClaimPath || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return false
	}
	return strings.Contains(text, "://") || !slices.Contains(strings.Split(text, "."), "")
}

// claim returns what the claims say under a name. Names with points are first taken as
// they stand, because issuers use addresses as names, and then as a path. A path that
// leads into something that is no object is a claim of the wrong shape, not a missing one.
func claim(claims map[string]any, name string) (value any, there bool, err error) {
	if value, there = claims[name]; there {
		return value, true, nil
	}
	value = claims
	for step := range strings.SplitSeq(name, ".") {
		inner, ok := value.(map[string]any)
		if !ok {
			return nil, true, wrongShape(name, "lies inside something that is not an object")
		}
		if value, there = inner[step]; !there {
			return nil, false, nil
		}
	}
	return value, true, nil
}

func wrongShape(name, problem string) error {
	return refuse(reasonClaims, "The token's claim %s %s.", name, problem)
}

// checkTimes returns when the token ends, leeway included, if it is in force now.
func checkTimes(claims map[string]any, now time.Time, leeway time.Duration) (ends time.Time, err error) {
	exp, there, err := date(claims, "exp")
	if err != nil {
		return time.Time{}, err
	}
	if !there {
		return time.Time{}, refuse(reasonClaims, "The token has no claim exp; tokens that never end are not taken.")
	}
	ends = exp.Add(leeway)
	if !now.Before(ends) {
		return time.Time{}, refuse(reasonExpired, "The token has expired.")
	}
	for _, name := range []string{"nbf", "iat"} {
		at, there, err := date(claims, name)
		if err != nil {
			return time.Time{}, err
		}
		if there && at.After(now.Add(leeway)) {
			return time.Time{}, refuse(reasonNotYet, "The token is not valid yet: its claim %s is in the future.", name)
		}
	}
	return ends, nil
}

// date reads a NumericDate (RFC 7519, 2): seconds, which may have a fraction.
func date(claims map[string]any, name string) (at time.Time, there bool, err error) {
	value, there := claims[name]
	if !there {
		return time.Time{}, false, nil
	}
	number, ok := value.(json.Number)
	if !ok {
		return time.Time{}, true, wrongShape(name, "is not a number")
	}
	seconds, err := strconv.ParseFloat(number.String(), 64)
	if err != nil || !(seconds >= 0 && seconds <= maxDate) { // also what is not a number at all
		return time.Time{}, true, wrongShape(name, "is not a time")
	}
	whole, part := math.Modf(seconds)
	return time.Unix(int64(whole), int64(part*float64(time.Second))), true, nil
}

// checkAudience refuses tokens that were made for somebody else.
func checkAudience(claims map[string]any, audiences []string) error {
	var held []string
	switch aud := claims["aud"].(type) {
	case string:
		held = []string{aud}
	case []any:
		var ok bool
		if held, ok = texts(aud); !ok {
			return wrongShape("aud", "is neither text nor a list of texts")
		}
	case nil:
		return refuse(reasonAudience, "The token has no claim aud.")
	default:
		return wrongShape("aud", "is neither text nor a list of texts")
	}
	for _, a := range held {
		if slices.Contains(audiences, a) {
			return nil
		}
	}
	return refuse(reasonAudience, "The token is meant for another audience.")
}

func texts(list []any) ([]string, bool) {
	found := make([]string, len(list))
	for i, v := range list {
		var ok bool
		if found[i], ok = v.(string); !ok {
			return nil, false
		}
	}
	return found, true
}

// callerPrefix begins the ids of callers that a token stands for. No key has it.
const callerPrefix = "jwt:"

// IsCaller reports whether an id is that of a caller that a token stands for.
func IsCaller(id string) bool { return strings.HasPrefix(id, callerPrefix) }

// caller makes a key of what a verified token says. A claim that is there and cannot be
// read refuses the token: it may have been meant to bound something.
func (i *issuer) caller(claims map[string]any, ends time.Time) (store.Key, error) {
	subject, there, err := claim(claims, i.SubjectClaim)
	if err != nil {
		return store.Key{}, err
	}
	name, ok := subject.(string)
	if !there || !ok || name == "" || len(name) > maxSubject {
		return store.Key{}, wrongShape(i.SubjectClaim, "is missing, or not a text of 1 to "+strconv.Itoa(maxSubject)+" bytes")
	}
	key := store.Key{ID: i.callers() + name, Name: name, ExpiresAt: ends}
	if key.Tenant, err = i.tenant(claims); err != nil {
		return store.Key{}, err
	}
	if key.Models, err = i.models(claims); err != nil {
		return store.Key{}, err
	}
	if err := i.limits(claims, &key); err != nil {
		return store.Key{}, err
	}
	if faults := key.Faults(); len(faults) > 0 {
		return store.Key{}, wrongShape(i.claimOf(faults[0].Field), faults[0].Problem)
	}
	key.Limits = limits.Either(key.Limits, i.Limits) // the operator's: what is wrong with them is no fault of a token
	return key, nil
}

// callers begins the ids of the issuer's callers.
func (i *issuer) callers() string { return callerPrefix + i.short + ":" }

// claimOf returns the claim that a field of a key is made from.
func (i *issuer) claimOf(field string) string {
	switch field {
	case "tenant":
		return i.TenantClaim
	case "models":
		return i.ModelsClaim
	case "limits":
		return i.LimitsClaim
	}
	return i.SubjectClaim
}

func (i *issuer) tenant(claims map[string]any) (string, error) {
	value, there, err := claim(claims, i.TenantClaim)
	if err != nil {
		return "", err
	}
	if !there {
		if i.Tenant == "" {
			return "", refuse(reasonTenant, "The token names no tenant: it has no claim %s.", i.TenantClaim)
		}
		return i.Tenant, nil
	}
	tenant, ok := value.(string)
	if !ok || tenant == "" || strings.TrimSpace(tenant) != tenant {
		return "", wrongShape(i.TenantClaim, "is not the name of a tenant")
	}
	return tenant, nil
}

// models returns the models that the token allows. Nothing would mean all of them in a
// key, so that a claim without any is a fault.
func (i *issuer) models(claims map[string]any) ([]string, error) {
	if i.ModelsClaim == "" {
		return nil, nil
	}
	value, there, err := claim(claims, i.ModelsClaim)
	if err != nil || !there {
		return nil, err
	}
	var models []string
	ok := true
	switch value := value.(type) {
	case string:
		models = strings.Fields(value)
	case []any:
		models, ok = texts(value)
	default:
		ok = false
	}
	if !ok {
		return nil, wrongShape(i.ModelsClaim, "is neither text nor a list of texts")
	}
	if len(models) == 0 {
		return nil, wrongShape(i.ModelsClaim, "names no model")
	}
	return models, nil
}

// limits gives the key the limits that the token carries, if it carries any.
func (i *issuer) limits(claims map[string]any, key *store.Key) error {
	if i.LimitsClaim == "" {
		return nil
	}
	value, there, err := claim(claims, i.LimitsClaim)
	if err != nil || !there {
		return err
	}
	if _, ok := value.(map[string]any); !ok {
		return wrongShape(i.LimitsClaim, "is not an object")
	}
	text, err := json.Marshal(value)
	if err != nil {
		return wrongShape(i.LimitsClaim, "cannot be read")
	}
	own := new(limits.Limits)
	if err := strictjson.Decode(text, own); err != nil {
		return refuse(reasonClaims, "The token's claim %s cannot be used. %s", i.LimitsClaim, err)
	}
	if err := own.Validate(); err != nil {
		return wrongShape(i.LimitsClaim, "is not in order: "+err.Error())
	}
	for _, m := range own.Models {
		for _, glob := range m.Models {
			if _, err := path.Match(glob, ""); err != nil || glob == "" {
				return wrongShape(i.LimitsClaim, "has a model that is neither a name nor a glob")
			}
		}
	}
	key.Limits = own
	return nil
}

// shortName names an issuer in the ids of its callers: its host, for people, and enough of
// its hash that no other issuer has the same.
func shortName(issuer string) string {
	hash := sha256.Sum256([]byte(issuer))
	short := hex.EncodeToString(hash[:6])
	if u, err := url.Parse(issuer); err == nil && u.Hostname() != "" && len(u.Hostname()) <= maxSubject/2 {
		return u.Hostname() + "-" + short
	}
	return short
}
