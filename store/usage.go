package store

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"sluice/internal/inference"
)

// UsageFilter selects records of the ledger. Zero fields select everything.
type UsageFilter struct {
	RequestID string
	JobID     string

	Limit int    // at most MaxPage; zero: DefaultPage
	After Cursor // continue behind this record
}

// Cursor is a place in the ledger. The zero Cursor is the place before the newest
// record.
type Cursor struct {
	CreatedAt time.Time
	JobID     string
}

// IsZero reports whether the cursor stands before the newest record.
func (c Cursor) IsZero() bool { return c.JobID == "" && c.CreatedAt.IsZero() }

// CursorOf returns the place of a record that Usage returned, so that the next
// page begins behind it.
func CursorOf(r inference.Record) Cursor {
	return Cursor{CreatedAt: r.CreatedAt, JobID: r.JobID}
}

// Clean returns the filter with its limit set and bounded, and its texts and time
// changed in the way that Clean changes a record's, so that a record is found by
// what it came with.
func (f UsageFilter) Clean() UsageFilter {
	if f.Limit <= 0 {
		f.Limit = DefaultPage
	}
	f.Limit = min(f.Limit, MaxPage)
	for _, s := range []*string{&f.RequestID, &f.JobID, &f.After.JobID} {
		*s = CleanText(*s)
	}
	f.After.CreatedAt = CleanTime(f.After.CreatedAt)
	return f
}

// Clean returns the record as the ledger keeps it: times in UTC and, like
// durations, in whole microseconds; texts storable; no counts of tokens unless
// they are known; no cost below zero; of the tries the last inference.MaxTries.
//
// Some texts are the client's or the upstream's own. A record is never refused for
// such a text, because the queue would deliver its whole batch again for ever.
func Clean(r inference.Record) inference.Record {
	for _, s := range []*string{
		&r.JobID, &r.RequestID, (*string)(&r.Kind), &r.Tenant, &r.KeyID, &r.ModelAsked,
		&r.Provider, &r.ModelServed, (*string)(&r.Outcome), (*string)(&r.ErrorCode), (*string)(&r.Cache),
	} {
		*s = CleanText(*s)
	}
	r.CreatedAt = CleanTime(r.CreatedAt)
	for _, d := range []*time.Duration{&r.Queue, &r.FirstToken, &r.Total} {
		*d = d.Truncate(time.Microsecond)
	}
	if !r.Usage.Known {
		r.Usage = inference.Usage{Estimated: r.Usage.Estimated}
	}
	r.Cost = max(r.Cost, 0)
	r.Tries = CleanTries(r.Tries)
	return r
}

// CleanTries returns tries as the ledger keeps them. It returns nil for none, and leaves the caller's tries as they are.
func CleanTries(tries []inference.Try) []inference.Try {
	if len(tries) == 0 {
		return nil
	}
	clean := slices.Clone(tries[max(len(tries)-inference.MaxTries, 0):])
	for i := range clean {
		t := &clean[i]
		for _, s := range []*string{&t.Provider, &t.Model, (*string)(&t.Code)} {
			*s = CleanText(*s)
		}
		t.Took = t.Took.Truncate(time.Microsecond)
	}
	return clean
}

// CleanText returns s as it can be stored in every database: UTF-8, without NUL,
// which Postgres refuses, and cut to MaxTextBytes, because an index row has a
// bounded size.
func CleanText(s string) string {
	if len(s) > MaxTextBytes {
		// A few bytes more than are kept, so that the first cut never decides
		// whether the last character is whole.
		s = s[:min(len(s), MaxTextBytes+utf8.UTFMax)]
	}
	s = strings.ReplaceAll(strings.ToValidUTF8(s, string(utf8.RuneError)), "\x00", "")
	if len(s) <= MaxTextBytes {
		return s
	}
	end := MaxTextBytes
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

// CleanTime returns t in UTC and in whole microseconds, which is what a database
// can keep.
func CleanTime(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// CleanBatch returns the records of one AppendUsage as the ledger keeps them, one
// for each job, ordered by job. The order matters: two batches that overlap and
// are written at the same time take their locks in the same order and cannot
// wait for each other in a circle.
func CleanBatch(records []inference.Record) ([]inference.Record, error) {
	if len(records) > MaxBatch {
		return nil, fmt.Errorf("%d records in one batch, more than %d: %w", len(records), MaxBatch, ErrInvalid)
	}
	batch := make([]inference.Record, len(records))
	for i, r := range records {
		batch[i] = Clean(r)
		if batch[i].JobID == "" {
			return nil, fmt.Errorf("record %d has no job id: %w", i+1, ErrInvalid)
		}
	}
	// Stable, so that of a job's records in one batch the first one stays.
	slices.SortStableFunc(batch, func(a, b inference.Record) int { return cmp.Compare(a.JobID, b.JobID) })
	return slices.CompactFunc(batch, func(a, b inference.Record) bool { return a.JobID == b.JobID }), nil
}
