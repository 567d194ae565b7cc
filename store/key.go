package store

import (
	"fmt"
	"path"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"sluice/internal/limits"
)

// Key is an API key as the database knows it. The secret itself is nowhere.
type Key struct {
	ID      string
	Name    string // unique among the keys that are not revoked
	Tenant  string
	Display string   // the masked secret, for listings
	Hash    [32]byte // SHA-256 of the secret
	Models  []string // globs of the models allowed; empty: all

	// Limits are the key's own; nil: those that the ingress has for keys without.
	Limits *limits.Limits

	// Replaced are the secrets before this one, the one valid longest first.
	Replaced []Replaced

	CreatedAt time.Time
	UpdatedAt time.Time // the last change, on the database's clock
	ExpiresAt time.Time // zero: never
	RevokedAt time.Time // zero: not revoked
}

// Active reports whether the key is in force at the time now. A revoked key never
// is, whatever time the revocation carries: a clock that runs ahead must not keep
// a key alive.
func (k Key) Active(now time.Time) bool {
	return k.RevokedAt.IsZero() && (k.ExpiresAt.IsZero() || now.Before(k.ExpiresAt))
}

// KeyFault is one field of a key that is not as it must be. It wraps ErrInvalid and
// never shows the value.
type KeyFault struct {
	Field   string // id, name, tenant, display, models or limits
	Model   int    // which of the models, counted from 1; zero when it is none in particular
	Problem string
}

func (f KeyFault) Error() string {
	if f.Model > 0 {
		return fmt.Sprintf("key model %d %s", f.Model, f.Problem)
	}
	return "key " + f.Field + " " + f.Problem
}

// Unwrap makes every fault an ErrInvalid.
func (f KeyFault) Unwrap() error { return ErrInvalid }

// Validate returns the first of the key's faults, if the key cannot be stored. A key
// is made by an operator, who can put a wrong one right; so nothing is changed
// silently.
func (k Key) Validate() error {
	if faults := k.Faults(); len(faults) > 0 {
		return faults[0]
	}
	return nil
}

// Faults returns what is wrong with the key, at most one fault for each field and
// model. The same holds for every key, wherever it is kept.
func (k Key) Faults() []KeyFault {
	var faults []KeyFault
	for _, f := range []struct {
		name, value string
		required    bool
	}{
		{"id", k.ID, true},
		{"name", k.Name, true},
		{"tenant", k.Tenant, true},
		{"display", k.Display, false},
	} {
		problem := checkText(f.value)
		if f.required && f.value == "" {
			problem = "is empty"
		}
		if problem != "" {
			faults = append(faults, KeyFault{Field: f.name, Problem: problem})
		}
	}
	if len(k.Models) > MaxModels {
		return append(faults, KeyFault{Field: "models", Problem: fmt.Sprintf("are %d, more than %d", len(k.Models), MaxModels)})
	}
	for i, m := range k.Models {
		if problem := checkModel(m); problem != "" {
			faults = append(faults, KeyFault{Field: "models", Model: i + 1, Problem: problem})
		}
	}
	if problem := checkLimits(k.Limits); problem != "" {
		faults = append(faults, KeyFault{Field: "limits", Problem: problem})
	}
	return faults
}

// checkLimits returns what is wrong with a holder's own limits.
func checkLimits(l *limits.Limits) string {
	if l == nil {
		return ""
	}
	if err := l.Validate(); err != nil {
		return err.Error()
	}
	for i, m := range l.Models {
		if len(m.Models) > MaxModels {
			return fmt.Sprintf("models[%d].models are %d, more than %d", i, len(m.Models), MaxModels)
		}
		for j, model := range m.Models {
			if problem := checkModel(model); problem != "" {
				return fmt.Sprintf("models[%d].models[%d] %s", i, j, problem)
			}
		}
	}
	return ""
}

// checkModel returns what is wrong with a name or glob. One that can be read by
// nobody would let nothing in, and look as if it did.
func checkModel(model string) string {
	if problem := checkText(model); problem != "" {
		return problem
	}
	if _, err := path.Match(model, ""); err != nil || model == "" {
		return `is neither a model's name nor a glob, such as "gpt-4o*"; [ and \ have a meaning in globs`
	}
	return ""
}

func checkText(s string) string {
	switch {
	case len(s) > MaxTextBytes:
		return fmt.Sprintf("is longer than %d bytes", MaxTextBytes)
	case !utf8.ValidString(s):
		return "is not UTF-8"
	case strings.ContainsFunc(s, unicode.IsControl):
		return "has a control character"
	}
	return ""
}
