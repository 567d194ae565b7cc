-- +goose Up

-- Background jobs. The database owns them; the queue's messages stand for them and can be
-- published again from here. Bodies and responses come last and are TOASTed when they are
-- large, so that a change of status does not write them again.
CREATE TABLE jobs (
    id                text COLLATE "C" PRIMARY KEY,
    request_id        text COLLATE "C" NOT NULL,
    tenant            text COLLATE "C" NOT NULL,
    key_id            text COLLATE "C" NOT NULL,
    key_name          text             NOT NULL,
    kind              text             NOT NULL,
    model             text COLLATE "C" NOT NULL,
    lane              text             NOT NULL,
    body_ref          text             NOT NULL, -- empty: the body is here
    candidates        jsonb            NOT NULL,
    trace_parent      text             NOT NULL,
    metadata          jsonb,
    webhook           bytea, -- as it came, which jsonb would not keep
    created_at        timestamptz      NOT NULL,
    deadline          timestamptz,
    status            text COLLATE "C" NOT NULL
        CHECK (status IN ('queued', 'in_progress', 'completed', 'failed', 'cancelled', 'expired')),
    epoch             bigint           NOT NULL,
    dispatched_at     timestamptz, -- NULL: no message stands for the job yet
    provider          text             NOT NULL DEFAULT '',
    seq               bigint           NOT NULL DEFAULT 0,
    leased_until      timestamptz,
    started_at        timestamptz,
    finished_at       timestamptz,
    expires_at        timestamptz,
    response_status   bigint           NOT NULL DEFAULT 0,
    response_ref      text             NOT NULL DEFAULT '',
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
    answer_ref    text             NOT NULL DEFAULT '',
    answer_job    text             NOT NULL DEFAULT '',
    answer        bytea,
    PRIMARY KEY (tenant, key)
);

-- For the removal of what is no longer kept.
CREATE INDEX idempotency_keys_expires ON idempotency_keys (expires_at);

-- +goose Down
DROP TABLE idempotency_keys;
DROP TABLE jobs;
