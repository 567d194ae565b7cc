package adminapi

import "time"

// ProvidersPath is where the providers are listed. Below it, with a provider's name between,
// an operator pauses, drains and resumes one, and closes its breakers.
const (
	ProvidersPath = "/admin/v1/providers"
	PausePath     = "/pause"  // posts a ChangeProvider
	DrainPath     = "/drain"  // posts a ChangeProvider
	ResumePath    = "/resume" // posts a ResumeProvider
	ResetPath     = "/breakers/reset"
)

// ProviderList is the answer to GET ProvidersPath.
type ProviderList struct {
	Providers []Provider `json:"providers"`
}

// Provider is one provider as routing sees it, and what operators want of it.
type Provider struct {
	Name   string     `json:"name"`
	State  string     `json:"state"` // active, paused or draining
	Reason string     `json:"reason,omitempty"`
	Since  *time.Time `json:"since"` // null: it was always active
	Until  *time.Time `json:"until"` // when it is active again by itself; null: when an operator says so

	Workers   int               `json:"workers"`
	Slots     int               `json:"slots"`   // calls at once that the workers have room for
	Refused   bool              `json:"refused"` // the provider accepts no key of any of them
	Limit     int               `json:"limit"`   // calls at once that it bears at the moment; zero when not known
	InFlight  int               `json:"in_flight"`
	Held      int               `json:"held"`       // jobs that workers hold back until it can be called
	Waiting   int               `json:"waiting"`    // interactive jobs in its queue, as its workers last heard
	MaxQueued int               `json:"max_queued"` // bound of its interactive queue
	Rate      float64           `json:"rate"`       // jobs that end in a second
	Models    []string          `json:"models"`     // names or globs
	Breakers  map[string]string `json:"breakers"`   // by model, of those called of late
	Queue     []Lane            `json:"queue"`      // by lane; empty when NATS cannot be asked
}

// ChangeProvider pauses or drains a provider.
type ChangeProvider struct {
	Reason string `json:"reason,omitempty"`
	For    string `json:"for,omitempty"` // such as "30m", after which it is active by itself; empty: until it is resumed
}

// ResumeProvider has a provider take jobs again.
type ResumeProvider struct {
	Reason string `json:"reason,omitempty"`
}

// BreakersReset is the answer to ResetPath. The workers answer within a second, or not.
type BreakersReset struct {
	Workers int `json:"workers"` // that are known
	Heard   int `json:"heard"`   // of those
	Closed  int `json:"closed"`  // breakers that were not
}
