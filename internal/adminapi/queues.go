package adminapi

import "time"

// QueuesPath is where queues are listed. Below it stands one provider's, and below that
// its PurgePath.
const (
	QueuesPath = "/admin/v1/queues"
	PurgePath  = "/purge" // posts a PurgeQueue
)

// QueueList is the answer to GET QueuesPath.
type QueueList struct {
	Queues []Queue `json:"queues"`
}

// Queue is one provider's.
type Queue struct {
	Provider string `json:"provider"`
	State    string `json:"state"` // of the provider
	Lanes    []Lane `json:"lanes"`
}

// Lane is one lane of a queue. The background and the batch lane share a stream: bound and
// bytes are those of both together.
type Lane struct {
	Lane          string     `json:"lane"`
	Waiting       int        `json:"waiting"` // that no worker has had
	Running       int        `json:"running"` // in a worker's hands, or given back by one
	Oldest        *time.Time `json:"oldest"`  // when the oldest of those that wait came; null: none waits
	OldestSeconds float64    `json:"oldest_seconds"`
	Bound         int64      `json:"bound"` // jobs that it takes; zero: any number
	Bytes         uint64     `json:"bytes"`
}

// PurgeQueue asks for the jobs of a lane to end that no worker has.
type PurgeQueue struct {
	Lane      string `json:"lane"`
	OlderThan string `json:"older_than,omitempty"` // such as "10m": those that came longer ago; empty: all
}

// PurgedQueue is the answer to PurgeQueue.
type PurgedQueue struct {
	Ended   int  `json:"ended"`   // jobs that ended by it
	Kept    int  `json:"kept"`    // that a worker has, or that cannot be read
	Removed int  `json:"removed"` // messages of jobs that had ended before
	More    bool `json:"more"`    // there are more than one request ends: ask again
}
