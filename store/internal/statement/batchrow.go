package statement

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"sluice/store"
)

// InsertBatchArgs returns the values of a clean batch for InsertBatch. stamp encodes a
// time, and the zero time as NULL.
func InsertBatchArgs(b store.Batch, stamp func(time.Time) any) ([]any, error) {
	metadata, err := encodeTexts(b.Metadata)
	if err != nil {
		return nil, fmt.Errorf("encode metadata: %w", err)
	}
	caller, err := encodeCaller(b.Caller)
	if err != nil {
		return nil, fmt.Errorf("encode caller: %w", err)
	}
	return []any{
		b.ID, b.Tenant, b.KeyID, b.KeyName, b.Endpoint, string(b.Kind), b.Model, b.InputFile,
		b.CompletionWindow.Microseconds(), b.OutputExpires.Microseconds(), metadata, string(b.Status),
		stamp(b.CreatedAt), stamp(b.ExpiresAt), b.Owner, stamp(b.LeasedUntil), caller,
	}, nil
}

// encodeCaller returns a caller as it is kept: a JSON object, or nil, which stands for
// NULL.
func encodeCaller(c *store.BatchCaller) (*string, error) {
	if c == nil {
		return nil, nil //nolint:nilnil // NULL is a value like any other
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	text := string(b)
	return &text, nil
}

// EncodeFaults returns faults as they are kept: a JSON array, or nil, which stands for
// NULL, when there are none.
func EncodeFaults(faults []store.BatchFault) (*string, error) {
	if len(faults) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(faults)
	if err != nil {
		return nil, fmt.Errorf("encode faults: %w", err)
	}
	text := string(b)
	return &text, nil
}

// BatchRow is one row of batches on its way into a store.Batch. T is how the database's
// driver reads a time that may be NULL.
type BatchRow[T any] struct {
	batch                                                      store.Batch
	window, keep                                               int64
	created, expires, begun, finalizing, completed             T
	failed, expired, cancelling, cancelled, leasedUntil, purge T
	metadata, faults, caller                                   *string
}

// Targets returns where the values of BatchColumns go.
func (r *BatchRow[T]) Targets() []any {
	b, u := &r.batch, &r.batch.Usage
	return []any{
		&b.ID, &b.Tenant, &b.KeyID, &b.KeyName, &b.Endpoint, &b.Kind, &b.Model, &b.InputFile, &r.window,
		&r.keep, &r.metadata, &b.Status, &r.created, &r.expires, &r.begun, &r.finalizing, &r.completed,
		&r.failed, &r.expired, &r.cancelling, &r.cancelled, &b.ReadBytes, &b.Total, &b.Completed, &b.Failed,
		&u.PromptTokens, &u.CompletionTokens, &u.CachedTokens, &u.ReasoningTokens, &b.OutputFile, &b.ErrorFile,
		&r.faults, &b.Rate, &b.Owner, &r.leasedUntil, &r.purge, &r.caller,
	}
}

// Batch returns the batch that was read. read decodes a time, NULL as the zero time.
func (r *BatchRow[T]) Batch(read func(T) time.Time) (store.Batch, error) {
	b := r.batch
	b.CompletionWindow = time.Duration(r.window) * time.Microsecond
	b.OutputExpires = time.Duration(r.keep) * time.Microsecond
	b.CreatedAt, b.ExpiresAt = read(r.created), read(r.expires)
	b.InProgressAt, b.FinalizingAt = read(r.begun), read(r.finalizing)
	b.CompletedAt, b.FailedAt, b.ExpiredAt = read(r.completed), read(r.failed), read(r.expired)
	b.CancellingAt, b.CancelledAt = read(r.cancelling), read(r.cancelled)
	b.LeasedUntil, b.PurgeAt = read(r.leasedUntil), read(r.purge)
	b.Usage.Known = true // the sum of what is known
	var err error
	if b.Metadata, err = decodeTexts(r.metadata); err != nil {
		return store.Batch{}, fmt.Errorf("metadata of batch %s: %w", b.ID, err)
	}
	if r.faults != nil {
		if err := json.Unmarshal([]byte(*r.faults), &b.Faults); err != nil {
			return store.Batch{}, fmt.Errorf("faults of batch %s: %w", b.ID, err)
		}
	}
	if r.caller != nil {
		if err := json.Unmarshal([]byte(*r.caller), &b.Caller); err != nil {
			return store.Batch{}, fmt.Errorf("caller of batch %s: %w", b.ID, err)
		}
	}
	return b, nil
}

// Missing returns the lines that are not there yet.
func Missing(lines []store.Job, there []int) []store.Job {
	known := make(map[int]bool, len(there))
	for _, line := range there {
		known[line] = true
	}
	var missing []store.Job
	for _, j := range lines {
		if !known[j.Line] {
			missing = append(missing, j)
		}
	}
	return missing
}

// GrowArgs returns the values for GrowBatch: what lines that were added, what was read
// and what was found wrong make of the batch.
func GrowArgs(b store.Batch, added []store.Job, readBytes int64, faults []store.BatchFault) ([]any, error) {
	text, err := EncodeFaults(b.WithFaults(faults))
	if err != nil {
		return nil, err
	}
	model := b.Model
	if model == "" && len(added) > 0 {
		model = added[0].Model
	}
	return []any{b.ID, int64(len(added)), max(readBytes, b.ReadBytes), model, text}, nil
}

// InsertJobColumnNames are InsertJobColumns, one by one.
func InsertJobColumnNames() []string {
	names := strings.Split(InsertJobColumns, ",")
	for i := range names {
		names[i] = strings.TrimSpace(names[i])
	}
	return names
}
