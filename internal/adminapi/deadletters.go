package adminapi

import "time"

// DeadLettersPath is where dead letters are listed; below it stands one by its id, and
// below that RequeuePath. The query's provider, reason, from, to, before and limit say
// which are wanted.
const (
	DeadLettersPath = "/admin/v1/dead-letters"
	RequeuePath     = "/requeue" // posts nothing, or a ManyLetters below DeadLettersPath
	DropPath        = "/drop"    // posts a ManyLetters
)

// DeadLetterList is the answer to GET DeadLettersPath, newest first.
type DeadLetterList struct {
	DeadLetters []DeadLetter `json:"dead_letters"`
	Before      string       `json:"before,omitempty"` // asks for the next page; empty: this was the last
}

// DeadLetter is a message that nobody could do anything with.
type DeadLetter struct {
	ID         string     `json:"id"`
	At         time.Time  `json:"at"`
	Kind       string     `json:"kind"`     // job, result or usage
	Provider   string     `json:"provider"` // "results" and "usage" for these
	Reason     string     `json:"reason"`
	Deliveries int        `json:"deliveries,omitempty"`
	JobID      string     `json:"job_id,omitempty"`
	RequestID  string     `json:"request_id,omitempty"`
	Lane       string     `json:"lane,omitempty"`
	Tenant     string     `json:"tenant,omitempty"`
	KeyID      string     `json:"key_id,omitempty"`
	Model      string     `json:"model,omitempty"`
	CreatedAt  *time.Time `json:"created_at,omitempty"`
	Deadline   *time.Time `json:"deadline,omitempty"`
	Attempts   int        `json:"attempts,omitempty"`
	Bytes      int64      `json:"bytes"`            // of its body
	Unread     string     `json:"unread,omitempty"` // why it cannot be read as a job, if it is to be one

	Body []byte `json:"body,omitempty"` // in base64, where it was asked for
}

// LetterRequeued is what became of a dead letter.
type LetterRequeued struct {
	ID    string `json:"id"`
	JobID string `json:"job_id,omitempty"` // as the API of jobs has it, but for lines of batches
	As    string `json:"as"`               // job, line, result or usage
}

// ManyLetters selects dead letters as the query of the list does. Limit bounds how many.
type ManyLetters struct {
	Provider string `json:"provider,omitempty"`
	Reason   string `json:"reason,omitempty"`
	From     string `json:"from,omitempty"`
	To       string `json:"to,omitempty"`
	Before   string `json:"before,omitempty"` // the Next of the answer before
	Limit    int    `json:"limit"`
}

// LettersDone is the answer to ManyLetters.
type LettersDone struct {
	Requeued []LetterRequeued `json:"requeued,omitempty"`
	Dropped  int              `json:"dropped,omitempty"`
	Failed   []LetterFailed   `json:"failed,omitempty"`
	More     bool             `json:"more"`           // there may be more that are selected
	Next     string           `json:"next,omitempty"` // what Before has to be for these; those that stay are not among them
}

// LetterFailed is a dead letter that could not be requeued, and stays.
type LetterFailed struct {
	ID      string `json:"id"`
	Code    string `json:"code"`
	Message string `json:"message"`
}
