package store

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"sluice/internal/inference"
)

// Clean returns a new job as the database keeps it: queued, with nothing of a course
// behind it, its times in UTC and whole microseconds, its texts storable. Errors:
// ErrInvalid, for what would not be the same job if it were changed to fit.
func (j Job) Clean() (Job, error) {
	clean := Job{
		ID: j.ID, RequestID: CleanText(j.RequestID), Tenant: j.Tenant,
		KeyID: CleanText(j.KeyID), KeyName: CleanText(j.KeyName), Limits: j.Limits,
		Kind: inference.Kind(CleanText(string(j.Kind))), Model: CleanText(j.Model),
		Lane:    inference.Lane(CleanText(string(j.Lane))),
		BatchID: j.BatchID, Line: j.Line, CustomID: CleanText(j.CustomID),
		Body: j.Body, TraceParent: CleanText(j.TraceParent),
		Candidates: slices.Clone(j.Candidates), Webhook: j.Webhook,
		CreatedAt: CleanTime(j.CreatedAt), Deadline: CleanTime(j.Deadline),
		Status: JobQueued, Epoch: j.Epoch, LeasedUntil: CleanTime(j.LeasedUntil),
	}
	for i := range clean.Candidates {
		c := &clean.Candidates[i]
		c.Provider, c.Model = CleanText(c.Provider), CleanText(c.Model)
	}
	for _, key := range slices.Sorted(maps.Keys(j.Metadata)) {
		if clean.Metadata == nil {
			clean.Metadata = make(map[string]string, len(j.Metadata))
		}
		clean.Metadata[CleanText(key)] = CleanText(j.Metadata[key])
	}
	if problem := j.problem(); problem != "" {
		return Job{}, fmt.Errorf("job %s %s: %w", CleanText(j.ID), problem, ErrInvalid)
	}
	return clean, nil
}

// problem returns why the job can never be stored, or nothing.
func (j Job) problem() string {
	switch {
	case !isName(j.ID):
		return "has no usable id"
	case !isName(j.Tenant):
		return "has no usable tenant"
	case j.CreatedAt.IsZero():
		return "has no time of its own"
	case len(j.Body) == 0:
		return "has no body"
	case len(j.Body) > MaxInlineBytes:
		return fmt.Sprintf("has a body of more than %d bytes", MaxInlineBytes)
	case CleanText(j.BatchID) != j.BatchID || (j.BatchID == "") != (j.Line == 0) || j.Line < 0:
		return "is neither a job of its own nor a line of a batch"
	case len(j.Candidates) == 0 || len(j.Candidates) > MaxCandidates:
		return fmt.Sprintf("has %d candidates, not 1 to %d", len(j.Candidates), MaxCandidates)
	case len(j.Metadata) > MaxMetadata:
		return fmt.Sprintf("has more than %d pairs of metadata", MaxMetadata)
	case len(j.Webhook) > MaxWebhookBytes:
		return fmt.Sprintf("has a webhook of more than %d bytes", MaxWebhookBytes)
	case j.Webhook != nil:
		return j.webhookProblem()
	}
	return ""
}

// isName reports whether s names something and is stored as it is.
func isName(s string) bool { return s != "" && CleanText(s) == s }

// Clean returns the filter with its limit set and bounded, and its texts and time
// changed as those of a job are. Errors: ErrInvalid without a tenant.
func (f JobFilter) Clean() (JobFilter, error) {
	if f.Tenant == "" {
		return JobFilter{}, fmt.Errorf("list jobs of no tenant: %w", ErrInvalid)
	}
	if f.Limit <= 0 {
		f.Limit = DefaultPage
	}
	f.Limit = min(f.Limit, MaxPage)
	for _, s := range []*string{&f.Tenant, (*string)(&f.Status), &f.Model, &f.After.JobID} {
		*s = CleanText(*s)
	}
	f.After.CreatedAt = CleanTime(f.After.CreatedAt)
	return f, nil
}

// CleanJobEnds returns the ends of one FinishJobs as they are kept, the first one of each
// job, ordered by job: two calls that overlap take their locks in the same order and
// cannot wait for each other in a circle.
func CleanJobEnds(ends []JobEnd) ([]JobEnd, error) {
	if len(ends) > MaxJobs {
		return nil, fmt.Errorf("%d ends of jobs in one call, more than %d: %w", len(ends), MaxJobs, ErrInvalid)
	}
	clean := make([]JobEnd, len(ends))
	for i, e := range ends {
		if problem := e.problem(); problem != "" {
			return nil, fmt.Errorf("end of job %s %s: %w", CleanText(e.Record.JobID), problem, ErrInvalid)
		}
		e.Record = Clean(e.Record)
		e.StartedAt, e.FinishedAt, e.ExpiresAt = CleanTime(e.StartedAt), CleanTime(e.FinishedAt), CleanTime(e.ExpiresAt)
		clean[i] = e
	}
	slices.SortStableFunc(clean, func(a, b JobEnd) int { return cmp.Compare(a.Record.JobID, b.Record.JobID) })
	return slices.CompactFunc(clean, func(a, b JobEnd) bool { return a.Record.JobID == b.Record.JobID }), nil
}

// problem returns why the end can never be stored, or nothing.
func (e JobEnd) problem() string {
	switch {
	case !isName(e.Record.JobID):
		return "names no job"
	case !e.Status.Finished():
		return "has a status that is no end"
	case e.FinishedAt.IsZero():
		return "has no time"
	case len(e.Response) > MaxInlineBytes:
		return fmt.Sprintf("has a response of more than %d bytes", MaxInlineBytes)
	}
	return ""
}

// RecordOf returns the job's row in the ledger: the record, and from the job whose request
// it was. A worker, which the record comes from, cannot put it to another's account.
func RecordOf(j Job, r inference.Record) inference.Record {
	r.JobID, r.RequestID, r.Kind, r.Tenant, r.KeyID = j.ID, j.RequestID, j.Kind, j.Tenant, j.KeyID
	r.ModelAsked, r.CreatedAt, r.Stream = j.Model, j.CreatedAt, false
	return r
}

// Row returns the job's row in the ledger, with what it cost.
func (e JobEnd) Row(j Job) inference.Record {
	r := RecordOf(j, e.Record)
	if e.Price != nil {
		e.Price(&r)
	}
	return r
}

// ExpiredEnd returns the end of a job whose deadline passed before now.
func ExpiredEnd(j Job, now time.Time, retention time.Duration) JobEnd {
	waited := now.Sub(j.CreatedAt)
	if !j.StartedAt.IsZero() {
		waited = j.StartedAt.Sub(j.CreatedAt)
	}
	return JobEnd{
		Status: JobExpired, FinishedAt: now, ExpiresAt: now.Add(retention),
		Record: inference.Record{
			JobID: j.ID, Outcome: inference.OutcomeExpired,
			Status: http.StatusGatewayTimeout, ErrorCode: inference.CodeDeadlineExceeded,
			Queue: waited, Total: now.Sub(j.CreatedAt),
		},
	}
}

// CancelledEnd returns the end of a job that its client cancelled.
func CancelledEnd(id string, at, expires time.Time, row inference.Record) JobEnd {
	row.JobID = id
	return JobEnd{Status: JobCancelled, FinishedAt: at, ExpiresAt: expires, Record: row}
}

// InRounds orders jobs as LeaseJobs returns them.
func InRounds(jobs []Job) {
	byAge := func(a, b Job) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	}
	slices.SortFunc(jobs, byAge)
	before := make(map[string]int) // jobs of a tenant that are older
	rounds := make(map[string]int, len(jobs))
	for _, j := range jobs {
		rounds[j.ID] = before[j.Tenant]
		before[j.Tenant]++
	}
	slices.SortStableFunc(jobs, func(a, b Job) int { return cmp.Compare(rounds[a.ID], rounds[b.ID]) })
}

// JobLimit returns how many jobs a call handles that was asked for limit.
func JobLimit(limit int) int { return max(0, min(limit, MaxJobs)) }

// MarkLimit is JobLimit for a call that only asks where messages are.
func MarkLimit(limit int) int { return max(0, min(limit, MaxMarks)) }

// bodyRate is how many bytes a second a database is trusted to take at least.
const bodyRate = 4 << 20

// BodyTime returns how much longer than other calls one may take that stores so many
// bytes. A result that could not be stored in time would come again for ever.
func BodyTime(bytes int) time.Duration {
	return time.Duration(bytes) * time.Second / bodyRate
}

// BodiesOf returns how many bytes the responses of ends have together.
func BodiesOf(ends []JobEnd) (bytes int) {
	for _, e := range ends {
		bytes += len(e.Response)
	}
	return bytes
}

// NextEpoch returns the first epoch of the family behind that of epoch, which ends every
// message of the one before.
func NextEpoch(epoch int) int { return (epoch/inference.EpochStride + 1) * inference.EpochStride }
