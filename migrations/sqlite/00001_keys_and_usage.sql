-- +goose Up

-- Times and durations are whole microseconds, times since 1970 in UTC.
CREATE TABLE api_keys (
    id         TEXT    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    tenant     TEXT    NOT NULL,
    display    TEXT    NOT NULL,
    hash       BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32),
    models     TEXT    NOT NULL, -- a JSON array of globs
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) STRICT;

-- A name is unique among the keys that are not revoked, and may be used again.
CREATE UNIQUE INDEX api_keys_name_in_force ON api_keys (name) WHERE revoked_at IS NULL;
CREATE INDEX api_keys_updated_at ON api_keys (updated_at);

-- The ledger: one row for each request. Tokens are NULL when nobody knows them.
CREATE TABLE usage_records (
    job_id            TEXT    NOT NULL PRIMARY KEY,
    request_id        TEXT    NOT NULL,
    kind              TEXT    NOT NULL,
    tenant            TEXT    NOT NULL,
    key_id            TEXT    NOT NULL,
    model_asked       TEXT    NOT NULL,
    provider          TEXT    NOT NULL,
    model_served      TEXT    NOT NULL,
    stream            INTEGER NOT NULL,
    prompt_tokens     INTEGER,
    completion_tokens INTEGER,
    cached_tokens     INTEGER,
    reasoning_tokens  INTEGER,
    estimated         INTEGER NOT NULL,
    attempts          INTEGER NOT NULL,
    outcome           TEXT    NOT NULL,
    status            INTEGER NOT NULL,
    error_code        TEXT    NOT NULL,
    created_at        INTEGER NOT NULL,
    queue_us          INTEGER NOT NULL,
    first_token_us    INTEGER, -- NULL: there was none
    total_us          INTEGER NOT NULL
) STRICT, WITHOUT ROWID; -- job ids grow with time, so the rows stand in order without another tree

-- Each list of usage is newest first, page by page; job_id settles a tie.
CREATE INDEX usage_records_created ON usage_records (created_at, job_id);
CREATE INDEX usage_records_tenant_created ON usage_records (tenant, created_at, job_id);
CREATE INDEX usage_records_key_created ON usage_records (key_id, created_at, job_id);
CREATE INDEX usage_records_request ON usage_records (request_id);

-- +goose Down
DROP TABLE usage_records;
DROP TABLE api_keys;
