-- +goose Up

-- Background jobs and the lines of batches. The database owns them; the queue's messages
-- stand for them and can be published again from here. Bodies and responses come last and
-- are TOASTed when they are large, so that a change of status does not write them again.
CREATE TABLE jobs (
    id                text COLLATE "C" PRIMARY KEY,
    request_id        text COLLATE "C" NOT NULL,
    tenant            text COLLATE "C" NOT NULL,
    key_id            text COLLATE "C" NOT NULL,
    key_name          text             NOT NULL,
    kind              text             NOT NULL,
    model             text COLLATE "C" NOT NULL,
    lane              text             NOT NULL,
    batch_id          text COLLATE "C" NOT NULL, -- empty: a job of its own
    line              bigint           NOT NULL, -- of the batch, from 1
    custom_id         text             NOT NULL,
    candidates        jsonb            NOT NULL,
    trace_parent      text             NOT NULL,
    metadata          jsonb,
    webhook           bytea, -- as it came, which jsonb would not keep
    created_at        timestamptz      NOT NULL,
    deadline          timestamptz,
    status            text COLLATE "C" NOT NULL
        CHECK (status IN ('queued', 'in_progress', 'completed', 'failed', 'cancelled', 'expired')),
    epoch             bigint           NOT NULL,
    not_before        timestamptz,
    dispatched_at     timestamptz, -- when its message was last known to be there; NULL: none stands for the job
    provider          text             NOT NULL DEFAULT '',
    seq               bigint           NOT NULL DEFAULT 0,
    leased_until      timestamptz,
    started_at        timestamptz,
    finished_at       timestamptz,
    expires_at        timestamptz,
    response_status   bigint           NOT NULL DEFAULT 0,
    attempts          bigint           NOT NULL DEFAULT 0,
    tries             jsonb,
    prompt_tokens     bigint, -- as in usage_records: NULL when nobody knows
    completion_tokens bigint,
    cached_tokens     bigint,
    reasoning_tokens  bigint,
    estimated         boolean          NOT NULL DEFAULT false,
    provider_served   text             NOT NULL DEFAULT '',
    model_served      text             NOT NULL DEFAULT '',
    error_code        text             NOT NULL DEFAULT '',
    body              bytea,
    response          bytea
);

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
    tenant        text COLLATE "C" NOT NULL,
    key           text COLLATE "C" NOT NULL,
    key_id        text             NOT NULL, -- the API key that it came with
    hash          bytea            NOT NULL CHECK (octet_length(hash) = 32),
    owner         text COLLATE "C" NOT NULL,
    job_id        text             NOT NULL,
    leased_until  timestamptz      NOT NULL,
    expires_at    timestamptz      NOT NULL,
    done          boolean          NOT NULL DEFAULT false,
    answer_status bigint           NOT NULL DEFAULT 0,
    answer_header text, -- a JSON object, as it was written
    answer_job    text             NOT NULL DEFAULT '',
    answer        bytea,
    PRIMARY KEY (tenant, key)
);

-- For the removal of what is no longer kept.
CREATE INDEX idempotency_keys_expires ON idempotency_keys (expires_at);

-- +goose Down
DROP TABLE idempotency_keys;
DROP TABLE jobs;
