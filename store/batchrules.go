package store

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"sluice/internal/inference"
)

// Clean returns a new batch as the database keeps it: validating, with nothing of a
// course behind it. Errors: ErrInvalid.
func (b Batch) Clean() (Batch, error) {
	if problem := b.problem(); problem != "" {
		return Batch{}, fmt.Errorf("batch %s %s: %w", CleanText(b.ID), problem, ErrInvalid)
	}
	clean := Batch{
		ID: b.ID, Tenant: b.Tenant, KeyID: CleanText(b.KeyID), KeyName: CleanText(b.KeyName), Caller: b.Caller,
		Endpoint: CleanText(b.Endpoint), Kind: inference.Kind(CleanText(string(b.Kind))),
		Model: CleanText(b.Model), InputFile: CleanText(b.InputFile),
		CompletionWindow: b.CompletionWindow.Truncate(time.Microsecond),
		OutputExpires:    b.OutputExpires.Truncate(time.Microsecond),
		Status:           BatchValidating,
		CreatedAt:        CleanTime(b.CreatedAt), ExpiresAt: CleanTime(b.ExpiresAt),
		Owner: CleanText(b.Owner), LeasedUntil: CleanTime(b.LeasedUntil),
		Usage: inference.Usage{Known: true},
	}
	if len(b.Metadata) > 0 {
		clean.Metadata = make(map[string]string, len(b.Metadata))
	}
	for _, key := range slices.Sorted(maps.Keys(b.Metadata)) {
		clean.Metadata[storable(key)] = storable(b.Metadata[key])
	}
	return clean, nil
}

// problem returns why the batch can never be stored, or nothing.
func (b Batch) problem() string {
	switch {
	case !isName(b.ID):
		return "has no usable id"
	case !isName(b.Tenant):
		return "has no usable tenant"
	case b.CreatedAt.IsZero() || b.ExpiresAt.IsZero():
		return "has no time or no end of it"
	case b.CompletionWindow < 0 || b.OutputExpires < 0:
		return "has a time below zero"
	case len(b.Metadata) > MaxMetadata:
		return fmt.Sprintf("has more than %d pairs of metadata", MaxMetadata)
	}
	for key, value := range b.Metadata {
		if len(key) > MaxTextBytes || len(value) > maxPairBytes {
			return "has metadata that is too long"
		}
	}
	return ""
}

// storable returns a text of any length as every database can keep it.
func storable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, string(utf8.RuneError)), "\x00", "")
}

// Clean returns the filter with its limit set and bounded, and its texts and time as the
// database keeps them. Errors: ErrInvalid without a tenant.
func (f BatchFilter) Clean() (BatchFilter, error) {
	if f.Tenant == "" {
		return BatchFilter{}, fmt.Errorf("list batches of no tenant: %w", ErrInvalid)
	}
	if f.Limit <= 0 {
		f.Limit = DefaultPage
	}
	f.Limit = min(f.Limit, MaxPage)
	f.Tenant, f.After.JobID = CleanText(f.Tenant), CleanText(f.After.JobID)
	f.After.CreatedAt = CleanTime(f.After.CreatedAt)
	return f, nil
}

// Clean returns the filter with its bound of bytes set.
func (f LineFilter) Clean() LineFilter {
	if f.Bytes <= 0 || f.Bytes > MaxLeaseBytes {
		f.Bytes = MaxLeaseBytes
	}
	return f
}

// Held returns why the owner may not change the batch: ErrLeaseLost for one who does not
// have it, ErrConflict if its status is none of these.
func (b Batch) Held(owner string, statuses ...BatchStatus) error {
	if owner == "" || b.Owner != owner {
		return ErrLeaseLost
	}
	if !slices.Contains(statuses, b.Status) {
		return fmt.Errorf("it is %s: %w", b.Status, ErrConflict)
	}
	return nil
}

// UnfinishedBatch returns the statuses that are no end.
func UnfinishedBatch() []BatchStatus {
	return []BatchStatus{BatchValidating, BatchInProgress, BatchFinalizing, BatchCancelling}
}

// CheckOwner returns an ErrInvalid for who cannot own a batch.
func CheckOwner(owner string) error {
	if !isName(owner) {
		return fmt.Errorf("owner of batches has no usable name: %w", ErrInvalid)
	}
	return nil
}

// CleanLines returns new lines of the batch as the database keeps them.
func CleanLines(b Batch, lines []Job) ([]Job, error) {
	if len(lines) > MaxLines {
		return nil, fmt.Errorf("%d lines in one call, more than %d: %w", len(lines), MaxLines, ErrInvalid)
	}
	if LineBytes(lines) > MaxInlineBytes {
		return nil, fmt.Errorf("lines of more than %d bytes in one call: %w", MaxInlineBytes, ErrInvalid)
	}
	clean := make([]Job, len(lines))
	for i, line := range lines {
		line.BatchID = b.ID
		var err error
		if clean[i], err = line.Clean(); err != nil {
			return nil, err
		}
		switch {
		case line.Tenant != b.Tenant:
			return nil, fmt.Errorf("line %d is another tenant's: %w", line.Line, ErrInvalid)
		case !isName(line.CustomID): // a text that is cut might be another line's
			return nil, fmt.Errorf("line %d has no usable custom id: %w", line.Line, ErrInvalid)
		}
	}
	slices.SortStableFunc(clean, func(a, b Job) int { return cmp.Compare(a.Line, b.Line) })
	return slices.CompactFunc(clean, func(a, b Job) bool { return a.Line == b.Line }), nil
}

// LineBytes returns how many bytes the bodies of lines have together.
func LineBytes(lines []Job) (bytes int) {
	for _, line := range lines {
		bytes += len(line.Body)
	}
	return bytes
}

// WithFaults returns the batch's faults and those of the others that are not among them,
// up to MaxFaults.
func (b Batch) WithFaults(others []BatchFault) []BatchFault {
	faults := slices.Clone(b.Faults)
	for _, f := range others {
		if len(faults) >= MaxFaults {
			break
		}
		f.Code, f.Message, f.Param = CleanText(f.Code), CleanText(f.Message), CleanText(f.Param)
		if !slices.Contains(faults, f) {
			faults = append(faults, f)
		}
	}
	return faults
}

// statusCancelled is what the ledger has for a request that its client took back. It is
// nginx's code, because HTTP has none.
const statusCancelled = 499

// LineEnds returns the ends of lines that are given up, in the same order: the window of
// their batch is over, or it was cancelled. Errors: ErrInvalid for any other status.
func LineEnds(lines []Job, status JobStatus, at time.Time) ([]JobEnd, error) {
	if status != JobExpired && status != JobCancelled {
		return nil, fmt.Errorf("end lines as %s: %w", CleanText(string(status)), ErrInvalid)
	}
	ends := make([]JobEnd, len(lines))
	for i, line := range lines {
		end := ExpiredEnd(line, CleanTime(at), 0)
		end.Status, end.ExpiresAt = status, time.Time{} // it goes with its batch
		if status == JobCancelled {
			end.Record.Outcome, end.Record.ErrorCode = inference.OutcomeCancelled, inference.CodeCancelled
			end.Record.Status = statusCancelled
		}
		end.Record.Attempts, end.Record.Tries = line.Attempts, line.Tries
		end.Record = Clean(end.Record)
		ends[i] = end
	}
	return ends, nil
}

// Validate returns an ErrInvalid unless a batch can end so.
func (e BatchEnd) Validate() error {
	if !e.Status.Finished() || e.Status == BatchFailed || e.At.IsZero() {
		return fmt.Errorf("batch cannot end as %s: %w", CleanText(string(e.Status)), ErrInvalid)
	}
	for _, file := range e.Files() {
		if err := file.Validate(); err != nil {
			return fmt.Errorf("file of a batch: %w", err)
		}
	}
	return nil
}

// Files returns the files that the batch made, as the database keeps them.
func (e BatchEnd) Files() []File {
	var files []File
	for _, file := range []*File{e.OutputFile, e.ErrorFile} {
		if file != nil {
			files = append(files, file.Clean())
		}
	}
	return files
}

// FileIDs returns the ids of the files, empty where there is none.
func (e BatchEnd) FileIDs() (output, failed string) {
	if e.OutputFile != nil {
		output = e.OutputFile.ID
	}
	if e.ErrorFile != nil {
		failed = e.ErrorFile.ID
	}
	return output, failed
}

// Of returns the end as it is that batch's. Whoever was told that a batch is being
// cancelled finds it cancelled in the end, also when its last line was done by then.
// Errors: ErrInvalid for a file of another tenant.
func (e BatchEnd) Of(b Batch) (BatchEnd, error) {
	for _, file := range e.Files() {
		if file.Tenant != b.Tenant {
			return BatchEnd{}, fmt.Errorf("file %s is another tenant's: %w", file.ID, ErrInvalid)
		}
	}
	if !b.CancellingAt.IsZero() {
		e.Status = BatchCancelled
	}
	return e, nil
}

// Event returns what is told of the end to the tenant.
func (e BatchEnd) Event(b Batch) Event {
	event := NewEvent(b.Tenant, "batch."+string(e.Status), b.ID)
	event.CreatedAt = CleanTime(e.At)
	return event
}

// CheckRate returns an ErrInvalid for what is no rate.
func CheckRate(perSecond float64) error {
	if math.IsNaN(perSecond) || math.IsInf(perSecond, 0) || perSecond < 0 {
		return fmt.Errorf("rate of a batch: %w", ErrInvalid)
	}
	return nil
}

// InLines orders lines of a batch as they are in its file.
func InLines(lines []Job) {
	slices.SortFunc(lines, func(a, b Job) int { return cmp.Compare(a.Line, b.Line) })
}

// ByAge orders batches, the oldest first.
func ByAge(batches []Batch) {
	slices.SortFunc(batches, func(a, b Batch) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
}

// LineLimit returns how many lines a call handles that was asked for limit.
func LineLimit(limit int) int { return max(0, min(limit, MaxLines)) }

// BatchLimit returns how many batches a call handles that was asked for limit.
func BatchLimit(limit int) int { return max(0, min(limit, MaxLeased)) }
