package store

import (
	"context"
	"time"

	"sluice/internal/inference"
	"sluice/internal/limits"
)

// BatchStatus is where a batch stands.
type BatchStatus string

// The statuses of a batch. It begins as validating. From there it goes to failed, or by
// in progress to finalizing and then to completed or expired. Cancelling stands between
// the first two and finalizing, and leads to cancelled.
const (
	BatchValidating BatchStatus = "validating"
	BatchFailed     BatchStatus = "failed"
	BatchInProgress BatchStatus = "in_progress"
	BatchFinalizing BatchStatus = "finalizing"
	BatchCompleted  BatchStatus = "completed"
	BatchExpired    BatchStatus = "expired"
	BatchCancelling BatchStatus = "cancelling"
	BatchCancelled  BatchStatus = "cancelled"
)

// Finished reports whether the status is an end.
func (s BatchStatus) Finished() bool {
	return s == BatchFailed || s == BatchCompleted || s == BatchExpired || s == BatchCancelled
}

// Cancellable reports whether a batch with the status can be cancelled.
func (s BatchStatus) Cancellable() bool { return s == BatchValidating || s == BatchInProgress }

// Limits of batches.
const (
	// MaxLines is how many lines one call adds, and the most that LeaseLines, EndLines and
	// FinishedLines return at once, and DropLines removes.
	MaxLines = 1000

	MaxLineIDs   = 10_000 // that one LineIDs returns
	MaxBacklogs  = 10_000 // that one Backlogs returns
	MaxFaults    = 100    // of one batch
	MaxLeased    = 1000   // batches that one LeaseBatches returns and PurgeBatches removes
	maxPairBytes = 2048   // of a batch's metadata: 512 characters
)

// Batch is many requests that came as the lines of one file. Each line is a Job that has
// the batch's id. Zero times stand for what has not come yet.
type Batch struct {
	ID        string
	Tenant    string
	KeyID     string
	KeyName   string
	Caller    *BatchCaller // what the key would say, if none does
	Endpoint  string
	Kind      inference.Kind
	Model     string // as the first line asks for it
	InputFile string

	CompletionWindow time.Duration
	Metadata         map[string]string
	OutputExpires    time.Duration // how long the files that it makes are kept; zero: nobody said

	Status       BatchStatus
	CreatedAt    time.Time
	ExpiresAt    time.Time // the end of its window
	InProgressAt time.Time
	FinalizingAt time.Time
	CompletedAt  time.Time
	FailedAt     time.Time
	ExpiredAt    time.Time
	CancellingAt time.Time
	CancelledAt  time.Time

	ReadBytes int64 // of the input file, as far as its lines and faults are stored

	// The lines: those that are stored, and how they ended. None of the counts decreases.
	Total     int
	Completed int // with a 2xx
	Failed    int // in any other way
	Usage     inference.Usage

	OutputFile string // empty: none
	ErrorFile  string
	Faults     []BatchFault
	Rate       float64 // lines a second, lately

	// Owner is who works on the batch, until LeasedUntil or until another one has it.
	Owner       string
	LeasedUntil time.Time

	PurgeAt time.Time // when the row goes; zero: never
}

// BatchCaller is what the caller of a batch may ask for whom no key stands for: a token
// said it, and the token is not kept.
type BatchCaller struct {
	Models []string       `json:"models,omitempty"` // names or globs; empty: all
	Limits *limits.Limits `json:"limits,omitempty"`
}

// BatchFault is what is wrong with a batch's file.
type BatchFault struct {
	Code    string `json:"code"`
	Message string `json:"message,omitempty"`
	Param   string `json:"param,omitempty"`
	Line    int    `json:"line,omitempty"` // from 1; zero: the file as a whole
}

// BatchEnd is how a batch ended whose lines were worked on. Its files are stored with it.
type BatchEnd struct {
	Status     BatchStatus // completed, expired or cancelled
	OutputFile *File       // nil: none
	ErrorFile  *File
	At         time.Time
	Purge      time.Time // zero: it is kept for ever
}

// BatchFilter selects batches of one tenant.
type BatchFilter struct {
	Tenant string // is never left out
	Limit  int    // at most MaxPage; zero: DefaultPage
	After  Cursor // continue behind this batch
}

// BatchCursor returns the place of a batch, so that a page begins behind it.
func BatchCursor(b Batch) Cursor { return Cursor{CreatedAt: b.CreatedAt, JobID: b.ID} }

// LineID names a line.
type LineID struct {
	Line     int
	CustomID string
}

// LineFilter selects finished lines of a batch.
type LineFilter struct {
	Failed *bool // whether they count as failed; nil: either way
	After  int   // continue behind this line
	Bytes  int   // of responses, but one line at least; zero: MaxLeaseBytes, which is also the most
}

// Backlog is what is left to do of a batch in progress.
type Backlog struct {
	BatchID   string
	Tenant    string
	Waiting   int // lines that have no message
	Out       int // lines that have one, or that somebody is about to publish
	CreatedAt time.Time
	ExpiresAt time.Time
}

// Batches is the part of the store that owns batches and, as a part of the jobs, their
// lines.
//
// Of all processes one at a time works on a batch: its owner. It is so from LeaseBatches
// until another one takes the batch, which nobody does before the lease has run out. The
// methods that take an owner return ErrLeaseLost to everybody else, also when there is no
// such batch, and change nothing then; they return ErrConflict when the batch's status is
// not one that the method begins with. Times are the callers'.
type Batches interface {
	// CreateBatch stores a new batch, validating and without lines; what it says of its
	// course is not read. With Owner and LeasedUntil the caller has it at once. Errors:
	// ErrDuplicate, ErrInvalid.
	CreateBatch(ctx context.Context, b Batch) error

	// Batch returns the tenant's batch of this id. Errors: ErrNotFound.
	Batch(ctx context.Context, tenant, id string) (Batch, error)

	// ListBatches returns the batches that the filter selects, newest first. Errors:
	// ErrInvalid for a filter without a tenant.
	ListBatches(ctx context.Context, f BatchFilter) ([]Batch, error)

	// LeaseBatches makes the owner that of unfinished batches until now+lease: of those that
	// it has already, whose lease it renews, and then of those that nobody has. Of either the
	// oldest come first in the choice, and the oldest of all first in the answer. Errors:
	// ErrInvalid without an owner.
	LeaseBatches(ctx context.Context, owner string, now time.Time, lease time.Duration, limit int) ([]Batch, error)

	// ReleaseBatches lets go of everything that the owner has, so that another one may have
	// it at once.
	ReleaseBatches(ctx context.Context, owner string) error

	// AddLines stores lines of a batch that is validated, and readBytes, which is how much of
	// the file was read with them, from its beginning on. Faults are appended until there are
	// MaxFaults. All of it is stored or nothing, and the call may be repeated: a line or a
	// fault that is there is left out. The lines are MaxLines and their bodies MaxInlineBytes
	// at most, and have the batch's tenant. Errors: ErrLeaseLost, ErrConflict, ErrInvalid,
	// ErrDuplicate for a line that has another job's id.
	AddLines(ctx context.Context, owner, id string, lines []Job, readBytes int64, faults []BatchFault) error

	// LineIDs returns the names of the lines behind one, in order, so that whoever goes on
	// validating knows which ones are taken. They are MaxLineIDs at most.
	LineIDs(ctx context.Context, id string, after, limit int) ([]LineID, error)

	// BeginBatch says that the lines are all there and may be worked on: validating becomes
	// in progress. Errors: ErrLeaseLost, ErrConflict.
	BeginBatch(ctx context.Context, owner, id string, at time.Time) error

	// FailBatch ends a batch whose file is at fault: validating becomes failed, with its
	// event. Lines that are stored go by DropLines. Errors: ErrLeaseLost, ErrConflict.
	FailBatch(ctx context.Context, owner, id string, at, purge time.Time) error

	// CancelBatch makes cancelling of validating and in progress, and returns the batch as it
	// then is. One that is farther stays as it is. Errors: ErrNotFound.
	CancelBatch(ctx context.Context, tenant, id string, at time.Time) (Batch, error)

	// LeaseLines takes lines without a message of a batch in progress, in their order, and
	// keeps them from every other caller until now+lease. It returns them whole, with bodies
	// of MaxLeaseBytes together at most, but one line at least. The epoch of a line that may
	// have been published before is higher then.
	LeaseLines(ctx context.Context, id string, now time.Time, lease time.Duration, limit int) ([]Job, error)

	// Backlogs returns what is left to do of every batch in progress, the oldest first. A
	// lease on a line that has run out by the clock of this process does not count as one.
	Backlogs(ctx context.Context) ([]Backlog, error)

	// EndLines gives unfinished lines their end, expired or cancelled, with a row in the
	// ledger for each, and counts them as failed. It returns them in their order and without
	// bodies, and none only when no line of the batch is unfinished or the batch has ended.
	// Errors: ErrInvalid for another status.
	EndLines(ctx context.Context, id string, status JobStatus, at time.Time, limit int) ([]Job, error)

	// FinalizeBatch says that every line is finished: in progress or cancelling becomes
	// finalizing. Errors: ErrLeaseLost, ErrConflict, also while a line is unfinished.
	FinalizeBatch(ctx context.Context, owner, id string, at time.Time) error

	// FinishedLines returns finished lines in their order with their responses, but not with
	// the bodies of their requests.
	FinishedLines(ctx context.Context, id string, f LineFilter) ([]Job, error)

	// CompleteBatch ends a batch that is finalizing, with the rows of its files and its
	// event, all of it or nothing. One that was cancelling ends as cancelled, whatever the
	// end says: its client was told so. Errors: ErrLeaseLost, ErrConflict, ErrInvalid,
	// ErrDuplicate for a file that is there already.
	CompleteBatch(ctx context.Context, owner, id string, end BatchEnd) error

	// NoteRate remembers how many lines a second are finished lately. Errors: ErrLeaseLost,
	// ErrInvalid for what is no rate.
	NoteRate(ctx context.Context, owner, id string, perSecond float64) error

	// DropLines removes lines of batches that ended before a time, and returns how many those
	// were.
	DropLines(ctx context.Context, before time.Time, limit int) (int, error)

	// PurgeBatches removes batches whose time is over and whose lines are gone, and returns
	// how many those were.
	PurgeBatches(ctx context.Context, now time.Time, limit int) (int, error)
}
