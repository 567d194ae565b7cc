package store

import (
	"context"
	"time"

	"sluice/internal/inference"
)

// JobStatus is where a background job stands. It goes forward only: queued, in progress,
// and then one of the four ends.
type JobStatus string

// The statuses of a job.
const (
	JobQueued     JobStatus = "queued"
	JobInProgress JobStatus = "in_progress"
	JobCompleted  JobStatus = "completed"
	JobFailed     JobStatus = "failed"
	JobCancelled  JobStatus = "cancelled"
	JobExpired    JobStatus = "expired"
)

// Finished reports whether the status is an end.
func (s JobStatus) Finished() bool {
	return s == JobCompleted || s == JobFailed || s == JobCancelled || s == JobExpired
}

// Limits of jobs.
const (
	// MaxJobs is how many ends one FinishJobs takes, and the most jobs that
	// LeaseUndispatched, ExpireJobs and PurgeJobs handle at once.
	MaxJobs = 100

	MaxInlineBytes  = 1 << 20  // a body or a response in the database; what is longer is a blob
	MaxLeaseBytes   = 16 << 20 // the bodies that one LeaseUndispatched returns
	MaxWebhookBytes = 16 << 10
	MaxCandidates   = 64
	MaxMetadata     = 16 // pairs
)

// Job is one accepted background job: the request, where its message is, and how it
// ended. Zero times stand for what has not come yet.
type Job struct {
	ID          string // as the queue knows it
	RequestID   string
	Tenant      string
	KeyID       string
	KeyName     string
	Kind        inference.Kind
	Model       string // as the client asked for it
	Lane        inference.Lane
	Body        []byte // the client's JSON as it came; nil where BodyRef names the blob that has it
	BodyRef     string
	Candidates  []inference.Candidate
	TraceParent string
	Metadata    map[string]string
	Webhook     []byte // JSON that means nothing to the store, or nil
	CreatedAt   time.Time
	Deadline    time.Time // zero: none

	Status JobStatus

	// Epoch is that of the message which stands for the job. Provider and Seq say where
	// that message is; DispatchedAt is zero as long as there is none.
	Epoch        int
	DispatchedAt time.Time
	Provider     string
	Seq          uint64

	// LeasedUntil is how long the job belongs to whoever is about to publish it.
	LeasedUntil time.Time

	StartedAt  time.Time
	FinishedAt time.Time
	ExpiresAt  time.Time // when the row and its blobs go; zero: never

	// The answer that the call itself would have given, and what it took.
	ResponseStatus int
	Response       []byte // nil where ResponseRef names the blob that has it, or where there is none
	ResponseRef    string
	Attempts       int
	Tries          []inference.Try
	Usage          inference.Usage
	ProviderServed string
	ModelServed    string
	ErrorCode      inference.ErrorCode
}

// JobEnd is the end of one job.
type JobEnd struct {
	Status     JobStatus // one of the four ends
	StartedAt  time.Time // for a job of which nobody said that it started; zero: unknown
	FinishedAt time.Time
	ExpiresAt  time.Time // zero: the job is kept for ever

	Response    []byte
	ResponseRef string

	// Record becomes the job's row in the ledger, and its status, usage and attempts the
	// job's own. JobID names the job. Whose request it was, what was asked for and when
	// is taken from the job, whatever the record says.
	Record inference.Record
}

// JobFilter selects jobs of one tenant. Of the other fields zero selects everything.
type JobFilter struct {
	Tenant string // is never left out
	Status JobStatus
	Model  string // as it was asked for

	Limit int    // at most MaxPage; zero: DefaultPage
	After Cursor // continue behind this job
}

// JobCursor returns the place of a job that ListJobs returned, so that the next page
// begins behind it.
func JobCursor(j Job) Cursor { return Cursor{CreatedAt: j.CreatedAt, JobID: j.ID} }

// Jobs is the part of the store that owns background jobs: the queue only has messages
// that stand for them, and can be filled again from here.
//
// Times are the callers'. Jobs that a method returns without bodies have neither Body nor
// Response, but the names of their blobs.
type Jobs interface {
	// CreateJob stores a new job, queued and without a message; what the job says of its
	// course is not read. With LeasedUntil the caller keeps it to itself, so as to publish
	// it at once. The job is durable when the call returns. Texts are made storable as
	// Clean says. Errors: ErrDuplicate, ErrInvalid.
	CreateJob(ctx context.Context, job Job) error

	// Job returns a job whole. Errors: ErrNotFound, also for another tenant's job.
	Job(ctx context.Context, tenant, id string) (Job, error)

	// ListJobs returns the jobs that the filter selects, newest first and without bodies.
	// Errors: ErrInvalid for a filter without a tenant.
	ListJobs(ctx context.Context, filter JobFilter) ([]Job, error)

	// JobStatus returns what a worker asks before it begins: a job that is finished or has
	// a higher epoch than the worker's message is not to be done. Errors: ErrNotFound.
	JobStatus(ctx context.Context, id string) (status JobStatus, epoch int, err error)

	// LeaseUndispatched takes queued jobs that have no message, or whose message is older
	// than stale and never led to a start, and keeps them from every other caller until
	// now+lease. A job that may have been published before, because it has a message or an
	// earlier lease on it ran out, gets a higher epoch, which fences that message; where
	// it was is still to be read in the job.
	//
	// Jobs come whole and in rounds: the oldest one of each tenant, then the second one of
	// each, and the oldest first within a round. They are at most limit and MaxJobs, and
	// their bodies at most MaxLeaseBytes together.
	LeaseUndispatched(ctx context.Context, now time.Time, stale, lease time.Duration, limit int) ([]Job, error)

	// MarkDispatched says where the message of that epoch is, and ends the lease. Errors:
	// ErrConflict when the job has ended or a later epoch stands for it, so that the
	// message is of no use.
	MarkDispatched(ctx context.Context, id string, epoch int, provider string, seq uint64, at time.Time) error

	// MarkStarted says that a worker began a message of that epoch, or of one that a
	// worker derived from it. A job that has started, ended or got a later epoch stays as
	// it is, and so does one that is not there.
	MarkStarted(ctx context.Context, id string, epoch int, at time.Time) error

	// FinishJobs gives each job that is not finished yet its end and its row in the
	// ledger, which has each job once. It returns the ids of those, ordered; a second end
	// of a job, or one of a job that is not there, changes nothing. All of it is stored
	// durably or nothing, and the call may be repeated. Errors: ErrInvalid for more than
	// MaxJobs ends and for one that can never be stored.
	FinishJobs(ctx context.Context, ends []JobEnd) (news []string, err error)

	// CancelJob ends an unfinished job as cancelled at the time at, to be kept until
	// expires, with row in the ledger as in FinishJobs. It returns the job without bodies
	// as it then is, and whether it was this call that ended it. Errors: ErrNotFound, also
	// for another tenant's job.
	CancelJob(
		ctx context.Context, tenant, id string, at, expires time.Time, row inference.Record,
	) (job Job, news bool, err error)

	// ExpireJobs ends unfinished jobs whose deadline has passed, to be kept for the time
	// of retention, each with its row in the ledger, and returns them without bodies.
	ExpireJobs(ctx context.Context, now time.Time, retention time.Duration, limit int) ([]Job, error)

	// PurgeJobs removes jobs whose time is over, and returns them without bodies, so that
	// their blobs can be removed.
	PurgeJobs(ctx context.Context, now time.Time, limit int) ([]Job, error)
}
