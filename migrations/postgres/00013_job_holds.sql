-- +goose Up

-- The ingress that holds what is reserved of limits for a job with a message: the one that
-- sent it, or one that took over when that was gone. Empty while there is no message.
ALTER TABLE jobs ADD COLUMN held_by text COLLATE "C" NOT NULL DEFAULT '';

-- Who that is, of all unfinished jobs, and the jobs of one who is gone.
CREATE INDEX jobs_held ON jobs (held_by, id) WHERE finished_at IS NULL AND dispatched_at IS NOT NULL;

-- +goose Down
DROP INDEX jobs_held;
ALTER TABLE jobs DROP COLUMN held_by;
