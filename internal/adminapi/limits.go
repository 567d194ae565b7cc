package adminapi

import (
	"time"

	"sluice/internal/inference"
)

// LimitsPath is where an ingress is asked how a holder of limits stands. The query names
// one: key, by its id or name; tenant; or model.
const LimitsPath = "/admin/v1/limits"

// LimitsShown is the answer to GET LimitsPath: what is counted of all ingresses together.
type LimitsShown struct {
	At     time.Time    `json:"at"`
	Scopes []LimitScope `json:"scopes"` // empty: nothing limits the holder by itself

	// LimitsClaim is the claim in which tokens of the caller may carry other limits than those
	// shown, which no ingress keeps. What is used was counted by whichever held. Empty: there
	// is none, or it is no caller with tokens.
	LimitsClaim string `json:"limits_claim,omitempty"`
}

// LimitScope is what is counted by itself: all requests of a holder, or those of them that
// ask for some models.
type LimitScope struct {
	Scope  string   `json:"scope"`  // as in logs: key:ID, tenant:NAME or model:NAME, and the models behind it
	Models []string `json:"models"` // names or globs; empty: all

	RequestsPerMinute LimitWindow `json:"requests_per_minute"`
	TokensPerMinute   LimitWindow `json:"tokens_per_minute"`
	Concurrent        LimitGauge  `json:"concurrent"` // requests accepted and not yet answered
	Queued            LimitGauge  `json:"queued"`     // those of them that no worker has begun
	Waiting           int64       `json:"waiting"`    // requests that wait until their limits let them in, where queued is limited
	Budget            LimitBudget `json:"budget"`

	Ingresses int `json:"ingresses"` // that have a share in the counts
}

// LimitWindow is a limit on what is taken in any 60 seconds.
type LimitWindow struct {
	Limit        *int64  `json:"limit"` // null: no bound
	Used         int64   `json:"used"`
	Remaining    *int64  `json:"remaining"`
	ResetSeconds float64 `json:"reset_seconds"` // until nothing of what is used counts any more
}

// LimitGauge is a limit on what there is at one time.
type LimitGauge struct {
	Limit     *int64 `json:"limit"` // null: no bound
	Used      int64  `json:"used"`
	Remaining *int64 `json:"remaining"`
}

// LimitBudget is the money of a scope. A window is null that has no budget.
type LimitBudget struct {
	Day   *LimitSpend `json:"day"`
	Week  *LimitSpend `json:"week"`
	Month *LimitSpend `json:"month"`

	Reserved      inference.Cost `json:"reserved"`       // for requests that have not ended
	Orphaned      inference.Cost `json:"orphaned"`       // of it: by ingresses that are gone
	OrphanedUntil *time.Time     `json:"orphaned_until"` // when all of that will be free again; null: there is none
}

// LimitSpend is the budget of a calendar window of UTC.
type LimitSpend struct {
	Limit     inference.Cost `json:"limit"`
	Spent     inference.Cost `json:"spent"`
	Remaining inference.Cost `json:"remaining"` // that is neither spent nor reserved
	ResetsAt  time.Time      `json:"resets_at"`
}
