package adminapi

import (
	"encoding/json"
	"time"
)

// AuditPath is where an ingress is asked who changed what: GET it for an AuditList. The
// query's actor, action, target, from, to (RFC 3339), limit and after say which entries
// are wanted.
const AuditPath = "/admin/v1/audit"

// AuditEntry is one administrative change.
type AuditEntry struct {
	ID        string          `json:"id"`
	At        time.Time       `json:"at"`
	Actor     string          `json:"actor"`
	RequestID string          `json:"request_id,omitempty"`
	Action    string          `json:"action"` // such as key.create
	Target    string          `json:"target"` // such as key:ID
	Before    json.RawMessage `json:"before"` // null: there was nothing, or there is nothing to say
	After     json.RawMessage `json:"after"`
}

// AuditList is a page of the audit, newest first.
type AuditList struct {
	Entries []AuditEntry `json:"entries"`
	Page
}
