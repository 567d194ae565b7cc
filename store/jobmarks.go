package store

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"sluice/internal/inference"
)

// Dispatch says where the message of a job is, and which epoch it is of.
type Dispatch struct {
	ID       string
	Epoch    int
	Provider string
	Seq      uint64
	HeldBy   string // the ingress that holds what is reserved of limits for it
}

// Requeue takes a job's message away, and says what came of it and when the next one may
// follow.
type Requeue struct {
	ID        string
	Epoch     int       // of the message that is no more
	NotBefore time.Time // zero: at once
	Unsent    bool      // its queue refused the message, so that none of this epoch can turn up
	Attempts  int
	Tries     []inference.Try
}

// Claimed is what a worker learns that asks whether it is to begin.
type Claimed struct {
	Wanted   bool
	Attempts int // before, with their tries
	Tries    []inference.Try
}

// CleanDispatches returns what one MarkDispatched says as it is kept, each job once, the
// first time that it is named, and ordered by job: calls that overlap take their locks in
// the same order.
func CleanDispatches(sent []Dispatch) ([]Dispatch, error) {
	clean := func(d Dispatch) Dispatch {
		d.ID, d.Provider, d.HeldBy = CleanText(d.ID), CleanText(d.Provider), CleanText(d.HeldBy)
		return d
	}
	return cleanMarks(sent, clean, func(d Dispatch) string { return d.ID })
}

// CleanIDs is for Confirm what CleanDispatches is for MarkDispatched.
func CleanIDs(ids []string) ([]string, error) {
	return cleanMarks(ids, CleanText, func(id string) string { return id })
}

// CleanRequeues is for Requeue what CleanDispatches is for MarkDispatched.
func CleanRequeues(requeued []Requeue) ([]Requeue, error) {
	clean := func(r Requeue) Requeue {
		r.ID, r.NotBefore, r.Tries = CleanText(r.ID), CleanTime(r.NotBefore), CleanTries(r.Tries)
		return r
	}
	return cleanMarks(requeued, clean, func(r Requeue) string { return r.ID })
}

func cleanMarks[T any](marks []T, clean func(T) T, id func(T) string) ([]T, error) {
	if len(marks) > MaxMarks {
		return nil, fmt.Errorf("%d jobs in one call, more than %d: %w", len(marks), MaxMarks, ErrInvalid)
	}
	cleaned := make([]T, len(marks))
	for i, m := range marks {
		cleaned[i] = clean(m)
	}
	slices.SortStableFunc(cleaned, func(a, b T) int { return cmp.Compare(id(a), id(b)) })
	return slices.CompactFunc(cleaned, func(a, b T) bool { return id(a) == id(b) }), nil
}
