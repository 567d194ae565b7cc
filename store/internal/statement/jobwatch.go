package statement

// What is asked about jobs time and again.
const (
	// UnfinishedJobs takes the tenant and how many to count at most.
	UnfinishedJobs = `SELECT count(*) FROM (
		SELECT 1 FROM jobs WHERE tenant = $1 AND batch_id = '' AND finished_at IS NULL LIMIT $2) AS counted`

	// JobBody takes the id.
	JobBody = `SELECT body FROM jobs WHERE id = $1`

	OldestWaiting = `SELECT min(created_at) FROM jobs
		WHERE batch_id = '' AND finished_at IS NULL AND dispatched_at IS NULL`
)
