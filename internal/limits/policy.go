// Package limits says how much a key, a tenant or a model may take, and counts it.
//
// A request reserves what it may need with every scope that it counts for, and settles
// with what it took. The counts of a scope are one small record in JetStream, which every
// ingress changes by comparing and swapping; what a record grants is never more than its
// limit, however many ingresses there are. The package speaks to no server: whoever
// keeps the records is its Counters. It knows nothing of HTTP and decides nothing about
// answers; its neighbours are internal/queue, which keeps the records, and ingress,
// which reserves.
package limits

import (
	"fmt"

	"sluice/internal/inference"
)

// Limits bound what one holder (a key, a tenant or a model) may take. Zero: no bound.
type Limits struct {
	RequestsPerMinute int64 `json:"requests_per_minute,omitempty"` // in any 60 seconds
	TokensPerMinute   int64 `json:"tokens_per_minute,omitempty"`   // prompt and completion, in any 60 seconds
	Concurrent        int64 `json:"concurrent,omitempty"`          // requests accepted and not yet ended
	Queued            int64 `json:"queued,omitempty"`              // those of them that no worker has begun

	Budget Budget `json:"budget,omitzero"`

	// OnLimit says what becomes of a request that does not fit now: empty is Refuse.
	OnLimit Action `json:"on_limit,omitempty"`

	// Models are further limits, each counted by itself, for requests that ask for a model
	// which one of its names or globs covers. The first entry that does counts.
	Models []ModelLimits `json:"models,omitempty"`
}

// Budget bounds the cost in calendar windows of UTC: a day, a week from Monday, a month.
type Budget struct {
	Day   inference.Cost `json:"day,omitempty"`
	Week  inference.Cost `json:"week,omitempty"`
	Month inference.Cost `json:"month,omitempty"`
}

// ModelLimits are limits of a holder for some models.
type ModelLimits struct {
	Models            []string `json:"models"` // names or globs
	RequestsPerMinute int64    `json:"requests_per_minute,omitempty"`
	TokensPerMinute   int64    `json:"tokens_per_minute,omitempty"`
	Concurrent        int64    `json:"concurrent,omitempty"`
	Queued            int64    `json:"queued,omitempty"`
	Budget            Budget   `json:"budget,omitzero"`
}

// Action is what becomes of a request that does not fit into a window now.
type Action string

// The actions.
const (
	Refuse Action = "refuse" // 429 with Retry-After
	Queue  Action = "queue"  // it waits until it fits or its deadline ends
)

// MaxModels bounds the entries in Limits.Models.
const MaxModels = 100

// IsZero reports whether nothing is bounded.
func (l Limits) IsZero() bool {
	return l.RequestsPerMinute == 0 && l.TokensPerMinute == 0 && l.Concurrent == 0 && l.Queued == 0 &&
		l.Budget == (Budget{}) && len(l.Models) == 0
}

// Either returns the limits of a holder: its own, or the others if its own bound nothing,
// with what its own say of a request that does not fit. Nil says nothing at all.
func Either(own, others *Limits) *Limits {
	switch {
	case own == nil || own.IsZero() && own.OnLimit == "":
		return others
	case others == nil || !own.IsZero():
		return own
	}
	l := *others
	l.OnLimit = own.OnLimit
	return &l
}

// Validate returns what is wrong with limits that an operator wrote, by the names that
// they have in JSON, or nil.
func (l Limits) Validate() error {
	if l.OnLimit != "" && l.OnLimit != Refuse && l.OnLimit != Queue {
		return fmt.Errorf("on_limit must be %s or %s", Refuse, Queue)
	}
	if err := checkBounds(l.RequestsPerMinute, l.TokensPerMinute, l.Concurrent, l.Queued, l.Budget); err != nil {
		return err
	}
	if len(l.Models) > MaxModels {
		return fmt.Errorf("models has more than %d entries", MaxModels)
	}
	for i, m := range l.Models {
		if len(m.Models) == 0 {
			return fmt.Errorf("models[%d].models names no model", i)
		}
		if err := checkBounds(m.RequestsPerMinute, m.TokensPerMinute, m.Concurrent, m.Queued, m.Budget); err != nil {
			return fmt.Errorf("models[%d].%w", i, err)
		}
	}
	return nil
}

// maxCount bounds every limit that is a number: sums of some of them stay far within an
// int64.
const maxCount = 1_000_000_000_000

func checkBounds(requests, tokens, concurrent, queued int64, b Budget) error {
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"requests_per_minute", requests}, {"tokens_per_minute", tokens}, {"concurrent", concurrent}, {"queued", queued},
	} {
		if f.value < 0 || f.value > maxCount {
			return fmt.Errorf("%s must be from 0 to %d", f.name, int64(maxCount))
		}
	}
	for _, f := range []struct {
		name  string
		value inference.Cost
	}{{"day", b.Day}, {"week", b.Week}, {"month", b.Month}} {
		if f.value < 0 {
			return fmt.Errorf("budget.%s must not be negative", f.name)
		}
	}
	return nil
}
