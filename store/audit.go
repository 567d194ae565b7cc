package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxAuditBytes bounds what an entry of the audit says about how something was, and about
// how it is then.
const MaxAuditBytes = 1 << 20

// Change says who changes something. Each change of a key or a tenant writes its entry of
// the audit in its own transaction: there is none without the other.
type Change struct {
	Actor     string    // such as admin, an operator's name, or cli:USER
	At        time.Time // zero: now
	RequestID string    // empty: there is none
}

// Clean returns the change with its time set and its texts storable, or an ErrInvalid if
// nobody makes it.
func (c Change) Clean() (Change, error) {
	if c.At.IsZero() {
		c.At = time.Now()
	}
	c.At, c.Actor, c.RequestID = CleanTime(c.At), CleanText(c.Actor), CleanText(c.RequestID)
	if c.Actor == "" {
		return c, fmt.Errorf("change without an actor: %w", ErrInvalid)
	}
	return c, nil
}

// AuditEntry is one administrative change: who, what, and what was before and after. It
// holds no secret.
type AuditEntry struct {
	ID        string // empty in AppendAudit, which makes one
	At        time.Time
	Actor     string
	RequestID string
	Action    string          // such as key.create
	Target    string          // such as key:ID
	Before    json.RawMessage // nil: there was nothing before, or there is nothing to say
	After     json.RawMessage // the same for what is then
}

// Entry returns an entry about the change. What is nil is left out.
func (c Change) Entry(action, target string, before, after any) (AuditEntry, error) {
	e := AuditEntry{At: c.At, Actor: c.Actor, RequestID: c.RequestID, Action: action, Target: target}
	for _, side := range []struct {
		value any
		into  *json.RawMessage
	}{{before, &e.Before}, {after, &e.After}} {
		if side.value == nil {
			continue
		}
		text, err := json.Marshal(side.value)
		if err != nil {
			return AuditEntry{}, fmt.Errorf("encode audit of %s: %w", target, err)
		}
		*side.into = text
	}
	return e, nil
}

// Clean returns the entry as it is kept, with an id. Errors: ErrInvalid.
func (e AuditEntry) Clean() (AuditEntry, error) {
	by, err := Change{Actor: e.Actor, At: e.At, RequestID: e.RequestID}.Clean()
	if err != nil {
		return AuditEntry{}, err
	}
	e.Actor, e.At, e.RequestID = by.Actor, by.At, by.RequestID
	e.Action, e.Target = CleanText(e.Action), CleanText(e.Target)
	if e.Action == "" || e.Target == "" {
		return AuditEntry{}, fmt.Errorf("audit entry without an action or a target: %w", ErrInvalid)
	}
	for _, side := range []json.RawMessage{e.Before, e.After} {
		if side != nil && (len(side) > MaxAuditBytes || !json.Valid(side) || !utf8.Valid(side)) {
			return AuditEntry{}, fmt.Errorf("audit of %s: before or after is not JSON of at most %d bytes: %w", e.Target, MaxAuditBytes, ErrInvalid)
		}
	}
	if e.ID == "" {
		e.ID = "aud_" + strings.ToLower(rand.Text())
	}
	return e, nil
}

// AuditFilter selects entries. Zero fields select everything.
type AuditFilter struct {
	Actor  string
	Action string
	Target string
	From   time.Time // at or after
	To     time.Time // before

	Limit int    // at most MaxPage; zero: DefaultPage
	After string // continue behind the entry of this id
}

// Clean returns the filter with its limit set and bounded, and its texts and times as
// entries have them.
func (f AuditFilter) Clean() AuditFilter {
	f.Limit = pageLimit(f.Limit)
	for _, s := range []*string{&f.Actor, &f.Action, &f.Target, &f.After} {
		*s = CleanText(*s)
	}
	for _, t := range []*time.Time{&f.From, &f.To} {
		if !t.IsZero() {
			*t = CleanTime(*t)
		}
	}
	return f
}

func pageLimit(asked int) int {
	if asked <= 0 {
		return DefaultPage
	}
	return min(asked, MaxPage)
}

// Audit is the part of the store that remembers who changed what. Nothing changes or
// removes an entry.
type Audit interface {
	// AppendAudit stores an entry about a change that is not one of this database's keys or
	// tenants, which write their own. Whoever makes such a change appends before it acts.
	// Errors: ErrInvalid.
	AppendAudit(ctx context.Context, entry AuditEntry) error

	// ListAudit returns the entries that the filter selects, newest first. Errors:
	// ErrNotFound if there is no entry to continue behind.
	ListAudit(ctx context.Context, filter AuditFilter) ([]AuditEntry, error)
}
