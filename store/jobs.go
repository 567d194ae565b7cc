package store

import (
	"context"
	"time"

	"sluice/internal/inference"
	"sluice/internal/limits"
)

// JobStatus is where a job stands. It goes forward only: queued, in progress,
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
	// MaxJobs is how many ends one FinishJobs takes, and the most jobs that LeaseJobs,
	// ExpireJobs and PurgeJobs handle at once.
	MaxJobs = 100

	// MaxMarks is the most jobs that one call handles which only says, or asks, where
	// their messages are.
	MaxMarks = 1000

	MaxInlineBytes  = 64 << 20 // a body or a response
	MaxLeaseBytes   = 16 << 20 // the bodies that one lease returns, unless one alone is longer
	MaxWebhookBytes = 16 << 10
	MaxCandidates   = 64
	MaxMetadata     = 16 // pairs
)

// JobPrefix stands before a job's id wherever a client sees it: in the API and in events.
const JobPrefix = "job_"

// Job is one accepted job, of its own or a line of a batch: the request, where its message
// is, and how it ended. Zero times stand for what has not come yet.
type Job struct {
	ID          string // as the queue knows it
	RequestID   string
	Tenant      string
	KeyID       string
	KeyName     string
	Limits      *limits.Limits // what the caller may take where no key says it, but a token did; else nil
	Kind        inference.Kind
	Model       string // as the client asked for it
	Lane        inference.Lane
	BatchID     string // empty: a job of its own
	Line        int    // of the batch, from 1
	CustomID    string // the client's name for the line
	Body        []byte // the client's JSON as it came
	Candidates  []inference.Candidate
	TraceParent string
	Metadata    map[string]string
	Webhook     []byte // a JobWebhook as JSON, or nil
	CreatedAt   time.Time
	Deadline    time.Time // zero: none

	Status JobStatus

	// NotBefore is until when the job is not to get a message; zero: at once.
	NotBefore time.Time

	// Epoch is that of the message which stands for the job. Provider and Seq say where
	// that message is, and DispatchedAt when it was last known to be there; that is zero
	// while there is none.
	Epoch        int
	DispatchedAt time.Time
	Provider     string
	Seq          uint64

	// LeasedUntil is how long the job belongs to whoever is about to publish it.
	LeasedUntil time.Time

	StartedAt  time.Time
	FinishedAt time.Time
	ExpiresAt  time.Time // when the row goes; zero: never, or with its batch

	// The answer that the call itself would have given, and what it took.
	ResponseStatus int
	Response       []byte
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

	Response []byte

	// Record becomes the job's row in the ledger, and its status, usage and attempts the
	// job's own. JobID names the job. Whose request it was, what was asked for and when
	// is taken from the job, whatever the record says.
	Record inference.Record

	// Price fills in what the row cost, when it is whole. Nil: nobody knows.
	Price func(*inference.Record)
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

// Jobs is the part of the store that owns jobs: the queue only has messages that stand for
// them, and can be filled again from here. A line of a batch is a job too. It comes into
// being, gets its messages and goes with its batch, so that here only the methods about
// messages and ends see it.
//
// An epoch's family are the epochs that an ingress's message has and those that workers
// derive from it, up to the next multiple of inference.EpochStride. Of another family is
// another message.
//
// Times are the callers'. Jobs that a method returns without bodies have neither Body nor
// Response.
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

	// LeaseJobs takes unfinished jobs that have no message, and may have one, and keeps
	// them from every other caller until now+lease. A job that may have been published
	// before, because an earlier lease on it ran out, gets an epoch of the next family,
	// which fences that message.
	//
	// Jobs come whole and in rounds: the oldest one of each tenant, then the second one of
	// each, and the oldest first within a round. They are at most limit and MaxJobs, and
	// their bodies at most MaxLeaseBytes together, unless it is one job alone.
	LeaseJobs(ctx context.Context, now time.Time, lease time.Duration, limit int) ([]Job, error)

	// MarkDispatched says where the messages of jobs are and who holds for them, and ends
	// their leases. It returns the ids of those whose message is of no use, because the job
	// has ended, is not there or has an epoch of a later family. A message that a worker has
	// passed on meanwhile had its use: of its job only who holds is noted. Errors:
	// ErrInvalid for more than MaxMarks.
	MarkDispatched(ctx context.Context, sent []Dispatch, at time.Time) (useless []string, err error)

	// ClaimJob says whether a worker is to do a job whose message has that epoch, and if so
	// that it began. It is not, if the job is finished or not there, or if the message is
	// of another family than the job's, or older than the job's own.
	ClaimJob(ctx context.Context, id string, epoch int, at time.Time) (Claimed, error)

	// MoveJob says that a worker passed the job on: its message, of that epoch, now is
	// where provider and seq say. A job that is finished, or has a later epoch, stays as
	// it is.
	MoveJob(
		ctx context.Context, id string, epoch int, provider string, seq uint64,
		attempts int, tries []inference.Try, at time.Time,
	) error

	// Dispatched returns the unfinished jobs, lines too, whose message was last known
	// before that time, longest ago first and without bodies. They are at most MaxMarks.
	Dispatched(ctx context.Context, before time.Time, limit int) ([]Job, error)

	// Confirm says that the messages of jobs are where they were said to be. Errors:
	// ErrInvalid for more than MaxMarks.
	Confirm(ctx context.Context, ids []string, at time.Time) error

	// Requeue says that no message stands for jobs any more, and nobody holds for them. Each
	// gets an epoch of the next family unless its message was never sent, so that one which
	// turns up again is of no use, and a repeated call changes nothing. A job that is finished,
	// or has a later epoch, stays as it is. It returns the ids of those that do not. Errors:
	// ErrInvalid for more than MaxMarks.
	Requeue(ctx context.Context, requeued []Requeue) (changed []string, err error)

	// FinishJobs gives each job that is not finished yet its end and its row in the
	// ledger, which has each job once, counts it in its batch if it is a line, and tells
	// its tenant's webhooks and its own if it is not. It returns those jobs without
	// bodies, ordered by id; a second end of a job, or one of a job that is not there,
	// changes nothing. All of it is stored durably or nothing, and the call may be
	// repeated. Errors: ErrInvalid for more than MaxJobs ends and for one that can never
	// be stored.
	FinishJobs(ctx context.Context, ends []JobEnd) (news []Job, err error)

	// CancelJob ends an unfinished job as cancelled at the time at, to be kept until
	// expires, with row in the ledger and with what else FinishJobs does. It returns the
	// job without bodies as it then is, and whether it was this call that ended it.
	// Errors: ErrNotFound, also for another tenant's job.
	CancelJob(
		ctx context.Context, tenant, id string, at, expires time.Time, row inference.Record,
	) (job Job, news bool, err error)

	// ExpireJobs ends unfinished jobs whose deadline has passed, to be kept for the time
	// of retention, as FinishJobs does, and returns them without bodies.
	ExpireJobs(ctx context.Context, now time.Time, retention time.Duration, limit int) ([]Job, error)

	// PurgeJobs removes jobs whose time is over, and returns how many those were.
	PurgeJobs(ctx context.Context, now time.Time, limit int) (int, error)
}
