package token

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4/json" // it refuses names given twice, and case is part of a name
)

// Bounds of a token. Those of identity providers have one or two KiB.
const (
	MaxBytes    = 16 << 10
	maxDepth    = 16
	maxHeaders  = 32
	maxClaims   = 256
	maxKeyID    = 512
	jwtBegins   = "eyJ" // {" in base64url: every token has this first, and no key of Sluice
	tokenPieces = 3
)

// LooksLike reports whether a bearer can only be meant as a token: three parts of
// base64url with points between them, the first of which begins as a JSON object. A
// signature may be empty here, so that a token without one is refused as a token.
func LooksLike(bearer string) bool {
	if !strings.HasPrefix(bearer, jwtBegins) || strings.Count(bearer, ".") != tokenPieces-1 {
		return false
	}
	for i := range len(bearer) {
		switch c := bearer[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

// unverified is what a token says before anybody has checked that it may say so.
type unverified struct {
	alg    string
	kid    string
	issuer string
	claims map[string]any // numbers are json.Number
}

// parse reads a token without believing it.
func parse(raw string) (unverified, error) {
	if len(raw) > MaxBytes {
		return unverified{}, refuse(reasonMalformed, "The token is longer than %d bytes.", MaxBytes)
	}
	pieces := strings.Split(raw, ".")
	if !LooksLike(raw) {
		return unverified{}, refuse(reasonMalformed, "The token is malformed.")
	}
	header, err := object(pieces[0], maxHeaders)
	if err != nil {
		return unverified{}, err
	}
	claims, err := object(pieces[1], maxClaims)
	if err != nil {
		return unverified{}, err
	}
	u := unverified{claims: claims}
	if err := u.readHeader(header); err != nil {
		return unverified{}, err
	}
	if u.issuer, _ = claims["iss"].(string); u.issuer == "" {
		return unverified{}, refuse(reasonIssuer, "The token has no claim iss.")
	}
	return u, nil
}

// readHeader takes what counts of a token's header. Keys and addresses in it (jwk, jku,
// x5c, x5u) are the sender's own word and are not looked at.
func (u *unverified) readHeader(header map[string]any) error {
	if _, there := header["crit"]; there {
		return refuse(reasonMalformed, "The token's header has extensions that must be understood (crit); none are.")
	}
	if typ, there := header["typ"]; there && !accessToken(typ) {
		return refuse(reasonMalformed, "The token's type (typ) is neither JWT nor at+jwt.")
	}
	var ok bool
	if u.alg, ok = header["alg"].(string); !ok {
		return refuse(reasonAlgorithm, "The token's header names no algorithm.")
	}
	if kid, there := header["kid"]; there {
		if u.kid, ok = kid.(string); !ok || u.kid == "" || len(u.kid) > maxKeyID {
			return refuse(reasonMalformed, "The key id (kid) in the token's header is malformed.")
		}
	}
	return nil
}

// accessToken reports whether a token of this type is one that a caller identifies with.
// Issuers sign others with the same keys, such as those that tell of a logout (RFC 8725,
// 3.11).
func accessToken(typ any) bool {
	text, ok := typ.(string)
	if !ok {
		return false
	}
	switch strings.TrimPrefix(strings.ToLower(text), "application/") {
	case "jwt", "at+jwt":
		return true
	}
	return false
}

// object reads a part of a token, which must be a JSON object.
func object(piece string, most int) (map[string]any, error) {
	text, err := base64.RawURLEncoding.Strict().DecodeString(piece)
	if err != nil {
		return nil, refuse(reasonMalformed, "The token is malformed: a part of it is not base64url.")
	}
	if !utf8.Valid(text) || tooDeep(text) {
		return nil, refuse(reasonMalformed, "The token is malformed: a part of it is not UTF-8, or nested too deeply.")
	}
	var members map[string]any
	d := json.NewDecoder(bytes.NewReader(text))
	d.SetNumberType(json.UnmarshalJSONNumber)
	err = d.Decode(&members)
	if rest := new(any); err != nil || members == nil || !errors.Is(d.Decode(rest), io.EOF) {
		return nil, refuse(reasonMalformed, "The token is malformed: a part of it is not a JSON object in which every name stands once.")
	}
	if len(members) > most {
		return nil, refuse(reasonMalformed, "The token has too many claims or headers.")
	}
	return members, nil
}

// tooDeep reports whether JSON text is nested deeper than any token is, before a parser
// goes down after it.
func tooDeep(text []byte) bool {
	depth, inString := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{', c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}', c == ']':
			depth--
		}
	}
	return false
}
