-- +goose Up

-- Background jobs. The database owns them; the queue's messages stand for them and can be
-- published again from here. Bodies and responses come last, so that the other columns
-- are read without following their pages.
CREATE TABLE jobs (
    id                TEXT    NOT NULL PRIMARY KEY,
    request_id        TEXT    NOT NULL,
    tenant            TEXT    NOT NULL,
    key_id            TEXT    NOT NULL,
    key_name          TEXT    NOT NULL,
    kind              TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    lane              TEXT    NOT NULL,
    body_ref          TEXT    NOT NULL, -- empty: the body is here
    candidates        TEXT    NOT NULL, -- a JSON array
    trace_parent      TEXT    NOT NULL,
    metadata          TEXT, -- a JSON object
    webhook           BLOB,
    created_at        INTEGER NOT NULL,
    deadline          INTEGER,
    status            TEXT    NOT NULL
        CHECK (status IN ('queued', 'in_progress', 'completed', 'failed', 'cancelled', 'expired')),
    epoch             INTEGER NOT NULL,
    dispatched_at     INTEGER, -- NULL: no message stands for the job yet
    provider          TEXT    NOT NULL DEFAULT '',
    seq               INTEGER NOT NULL DEFAULT 0,
    leased_until      INTEGER,
    started_at        INTEGER,
    finished_at       INTEGER,
    expires_at        INTEGER,
    response_status   INTEGER NOT NULL DEFAULT 0,
    response_ref      TEXT    NOT NULL DEFAULT '',
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
CREATE INDEX jobs_tenant_created ON jobs (tenant, created_at, id);
CREATE INDEX jobs_tenant_ended ON jobs (tenant, status, created_at, id) WHERE finished_at IS NOT NULL;

-- What the dispatcher looks for, tenant by tenant, so that the oldest jobs of each one are
-- found without reading another's backlog. Both are partial: nearly all jobs of a table
-- are finished, and those stand in neither. Two and not one, because jobs that wait in the
-- queue may be many, and those without a message must be found without passing them.
CREATE INDEX jobs_undispatched ON jobs (tenant, created_at, id)
    WHERE status = 'queued' AND dispatched_at IS NULL;
CREATE INDEX jobs_dispatched ON jobs (tenant, dispatched_at, id)
    WHERE status = 'queued' AND dispatched_at IS NOT NULL;

-- Deadlines matter until a job is finished, the end of retention from then on.
CREATE INDEX jobs_deadline ON jobs (deadline) WHERE status IN ('queued', 'in_progress');
CREATE INDEX jobs_expires ON jobs (expires_at) WHERE expires_at IS NOT NULL;

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
    answer_ref    TEXT    NOT NULL DEFAULT '',
    answer_job    TEXT    NOT NULL DEFAULT '',
    answer        BLOB,
    PRIMARY KEY (tenant, key)
) STRICT;

-- For the removal of what is no longer kept.
CREATE INDEX idempotency_keys_expires ON idempotency_keys (expires_at);

-- +goose Down
DROP TABLE idempotency_keys;
DROP TABLE jobs;
