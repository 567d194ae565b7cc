-- +goose Up

-- Background jobs and the lines of batches. The database owns them; the queue's messages
-- stand for them and can be published again from here. Bodies and responses come last, so
-- that the other columns are read without following their pages.
CREATE TABLE jobs (
    id                TEXT    NOT NULL PRIMARY KEY,
    request_id        TEXT    NOT NULL,
    tenant            TEXT    NOT NULL,
    key_id            TEXT    NOT NULL,
    key_name          TEXT    NOT NULL,
    kind              TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    lane              TEXT    NOT NULL,
    batch_id          TEXT    NOT NULL, -- empty: a job of its own
    line              INTEGER NOT NULL, -- of the batch, from 1
    custom_id         TEXT    NOT NULL,
    candidates        TEXT    NOT NULL, -- a JSON array
    trace_parent      TEXT    NOT NULL,
    metadata          TEXT, -- a JSON object
    webhook           BLOB,
    created_at        INTEGER NOT NULL,
    deadline          INTEGER,
    status            TEXT    NOT NULL
        CHECK (status IN ('queued', 'in_progress', 'completed', 'failed', 'cancelled', 'expired')),
    epoch             INTEGER NOT NULL,
    not_before        INTEGER,
    dispatched_at     INTEGER, -- when its message was last known to be there; NULL: none stands for the job
    provider          TEXT    NOT NULL DEFAULT '',
    seq               INTEGER NOT NULL DEFAULT 0,
    leased_until      INTEGER,
    started_at        INTEGER,
    finished_at       INTEGER,
    expires_at        INTEGER,
    response_status   INTEGER NOT NULL DEFAULT 0,
    attempts          INTEGER NOT NULL DEFAULT 0,
    tries             TEXT, -- a JSON array
    prompt_tokens     INTEGER, -- as in usage_records: NULL when nobody knows
    completion_tokens INTEGER,
    cached_tokens     INTEGER,
    reasoning_tokens  INTEGER,
    estimated         INTEGER NOT NULL DEFAULT 0,
    provider_served   TEXT    NOT NULL DEFAULT '',
    model_served      TEXT    NOT NULL DEFAULT '',
    error_code        TEXT    NOT NULL DEFAULT '',
    body              BLOB,
    response          BLOB
) STRICT;

-- A tenant's list is newest first, page by page. Those of one end may lie far apart among
-- its finished jobs and have an index of their own; unfinished ones are few, and the newest.
-- A model's jobs are picked out along the way: the retention bounds what a tenant has.
-- Lines of batches, of which there may be millions, stand in none of the indexes of jobs
-- of their own.
CREATE INDEX jobs_tenant_created ON jobs (tenant, created_at, id) WHERE batch_id = '';
CREATE INDEX jobs_tenant_ended ON jobs (tenant, status, created_at, id)
    WHERE batch_id = '' AND finished_at IS NOT NULL;

-- What the dispatcher looks for, tenant by tenant, so that the oldest jobs of each one are
-- found without reading another's backlog.
CREATE INDEX jobs_waiting ON jobs (tenant, created_at, id)
    WHERE batch_id = '' AND finished_at IS NULL AND dispatched_at IS NULL;

-- What the reconciler looks for, of both lanes: what has not been heard of for long.
CREATE INDEX jobs_dispatched ON jobs (dispatched_at, id)
    WHERE finished_at IS NULL AND dispatched_at IS NOT NULL;

-- How many unfinished jobs of their own a tenant has is asked at nearly every new one.
CREATE INDEX jobs_tenant_unfinished ON jobs (tenant) WHERE batch_id = '' AND finished_at IS NULL;

-- Deadlines matter until a job is finished, the end of retention from then on. Those of
-- lines are their batch's.
CREATE INDEX jobs_deadline ON jobs (deadline) WHERE batch_id = '' AND finished_at IS NULL;
CREATE INDEX jobs_expires ON jobs (expires_at) WHERE batch_id = '' AND expires_at IS NOT NULL;

-- The lines of a batch in their order; those that have no message; and those that have
-- one, or are about to, of which there are never many. A finished line is in the first alone.
CREATE UNIQUE INDEX jobs_lines ON jobs (batch_id, line) WHERE batch_id <> '';
CREATE INDEX jobs_lines_waiting ON jobs (batch_id, line)
    WHERE batch_id <> '' AND finished_at IS NULL AND dispatched_at IS NULL;
CREATE INDEX jobs_lines_out ON jobs (batch_id, line)
    WHERE batch_id <> '' AND finished_at IS NULL AND (dispatched_at IS NOT NULL OR leased_until IS NOT NULL);

-- Requests that came with an idempotency key. A tenant's key stands for one request at a
-- time, which the primary key settles between callers that come together.
CREATE TABLE idempotency_keys (
    tenant        TEXT    NOT NULL,
    key           TEXT    NOT NULL,
    key_id        TEXT    NOT NULL, -- the API key that it came with
    hash          BLOB    NOT NULL CHECK (length(hash) = 32),
    owner         TEXT    NOT NULL,
    job_id        TEXT    NOT NULL,
    leased_until  INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,
    done          INTEGER NOT NULL DEFAULT 0,
    answer_status INTEGER NOT NULL DEFAULT 0,
    answer_header TEXT, -- a JSON object
    answer_job    TEXT    NOT NULL DEFAULT '',
    answer        BLOB,
    PRIMARY KEY (tenant, key)
) STRICT;

-- For the removal of what is no longer kept.
CREATE INDEX idempotency_keys_expires ON idempotency_keys (expires_at);

-- +goose Down
DROP TABLE idempotency_keys;
DROP TABLE jobs;
