package statement

// Held is the condition of the index by who holds for a job.
const Held = unfinished + ` AND dispatched_at IS NOT NULL`

// JobHolders is the recursive common table expression named holders: those who hold for jobs.
// Each step finds the next one in the index, so that it costs as much as there are ingresses,
// however many jobs they have.
const JobHolders = `holders(held_by) AS (
	SELECT min(held_by) FROM jobs WHERE held_by > '' AND ` + Held + `
	UNION ALL
	SELECT (SELECT min(jobs.held_by) FROM jobs WHERE jobs.held_by > holders.held_by AND ` + Held + `)
	FROM holders WHERE holders.held_by IS NOT NULL)`

// What is asked and said of those who hold for jobs.
const (
	HeldBy = `WITH RECURSIVE ` + JobHolders + ` SELECT held_by FROM holders WHERE held_by IS NOT NULL ORDER BY held_by`

	// HeldJobs selects the ids of jobs by who holds for them, $1, and a limit, $3. AdoptJob has
	// another one do so.
	HeldJobs = `SELECT id FROM jobs WHERE held_by = $1 AND ` + Held + ` ORDER BY id LIMIT $3`
	AdoptJob = `held_by = $2`
)
