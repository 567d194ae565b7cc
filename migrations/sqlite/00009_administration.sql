-- +goose Up

ALTER TABLE api_keys ADD COLUMN limits TEXT;   -- JSON; NULL: those of keys without
ALTER TABLE api_keys ADD COLUMN replaced TEXT; -- a JSON array of the secrets that rotations replaced, newest first

-- By these a key is found when a replaced secret is shown.
CREATE TABLE api_key_replaced (
    hash   BLOB NOT NULL PRIMARY KEY CHECK (length(hash) = 32),
    key_id TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX api_key_replaced_key ON api_key_replaced (key_id);
CREATE INDEX api_keys_created ON api_keys (created_at, id);
CREATE INDEX api_keys_tenant_created ON api_keys (tenant, created_at, id);

-- A tenant that was deleted stays as a row, from which every ingress learns that it was.
CREATE TABLE tenants (
    name       TEXT    NOT NULL PRIMARY KEY,
    limits     TEXT,             -- JSON; NULL: those of tenants without
    disabled   INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    deleted_at INTEGER
) STRICT;

CREATE INDEX tenants_updated_at ON tenants (updated_at);

CREATE TABLE audit_log (
    id         TEXT    NOT NULL PRIMARY KEY,
    at         INTEGER NOT NULL,
    actor      TEXT    NOT NULL,
    request_id TEXT    NOT NULL,
    action     TEXT    NOT NULL,
    target     TEXT    NOT NULL,
    before     TEXT, -- JSON; NULL: there was nothing before, or there is nothing to say
    after      TEXT
) STRICT;

-- Each list is newest first, page by page; id settles a tie.
CREATE INDEX audit_log_at ON audit_log (at, id);
CREATE INDEX audit_log_target ON audit_log (target, at, id);
CREATE INDEX audit_log_actor ON audit_log (actor, at, id);

-- +goose Down
DROP TABLE audit_log;
DROP TABLE tenants;
DROP INDEX api_keys_tenant_created;
DROP INDEX api_keys_created;
DROP TABLE api_key_replaced;
ALTER TABLE api_keys DROP COLUMN replaced;
ALTER TABLE api_keys DROP COLUMN limits;
