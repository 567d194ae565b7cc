-- +goose Up

-- Texts compare by bytes (COLLATE "C"), so that order is the same in every
-- database and an operating system's new collation never breaks an index.
CREATE TABLE api_keys (
    id         text COLLATE "C" PRIMARY KEY,
    name       text COLLATE "C" NOT NULL,
    tenant     text COLLATE "C" NOT NULL,
    display    text             NOT NULL,
    hash       bytea            NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    models     text[]           NOT NULL,
    created_at timestamptz      NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz      NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    revoked_at timestamptz
);

-- A name is unique among the keys that are not revoked, and may be used again.
CREATE UNIQUE INDEX api_keys_name_in_force ON api_keys (name) WHERE revoked_at IS NULL;
CREATE INDEX api_keys_updated_at ON api_keys (updated_at);

-- The ledger: one row for each request. Tokens are NULL when nobody knows them;
-- durations are in microseconds.
CREATE TABLE usage_records (
    job_id            text COLLATE "C" PRIMARY KEY,
    request_id        text COLLATE "C" NOT NULL,
    kind              text             NOT NULL,
    tenant            text COLLATE "C" NOT NULL,
    key_id            text COLLATE "C" NOT NULL,
    model_asked       text             NOT NULL,
    provider          text             NOT NULL,
    model_served      text             NOT NULL,
    stream            boolean          NOT NULL,
    prompt_tokens     bigint,
    completion_tokens bigint,
    cached_tokens     bigint,
    reasoning_tokens  bigint,
    estimated         boolean          NOT NULL,
    attempts          bigint           NOT NULL,
    outcome           text             NOT NULL,
    status            bigint           NOT NULL,
    error_code        text             NOT NULL,
    created_at        timestamptz      NOT NULL,
    queue_us          bigint           NOT NULL,
    first_token_us    bigint, -- NULL: there was none
    total_us          bigint           NOT NULL
);

-- Each list of usage is newest first, page by page; job_id settles a tie.
CREATE INDEX usage_records_created ON usage_records (created_at, job_id);
CREATE INDEX usage_records_tenant_created ON usage_records (tenant, created_at, job_id);
CREATE INDEX usage_records_key_created ON usage_records (key_id, created_at, job_id);
CREATE INDEX usage_records_request ON usage_records (request_id);

-- +goose Down
DROP TABLE usage_records;
DROP TABLE api_keys;
