-- +goose Up

-- JSON is kept as it was written (json, not jsonb): nothing looks into it here.
ALTER TABLE api_keys ADD COLUMN limits json;   -- NULL: those of keys without
ALTER TABLE api_keys ADD COLUMN replaced json; -- an array of the secrets that rotations replaced, newest first

-- By these a key is found when a replaced secret is shown.
CREATE TABLE api_key_replaced (
    hash   bytea            PRIMARY KEY CHECK (octet_length(hash) = 32),
    key_id text COLLATE "C" NOT NULL REFERENCES api_keys ON DELETE CASCADE
);

CREATE INDEX api_key_replaced_key ON api_key_replaced (key_id);
CREATE INDEX api_keys_created ON api_keys (created_at, id);
CREATE INDEX api_keys_tenant_created ON api_keys (tenant, created_at, id);

-- A tenant that was deleted stays as a row, from which every ingress learns that it was.
CREATE TABLE tenants (
    name       text COLLATE "C" PRIMARY KEY,
    limits     json,             -- NULL: those of tenants without
    disabled   boolean          NOT NULL,
    created_at timestamptz      NOT NULL,
    updated_at timestamptz      NOT NULL,
    deleted_at timestamptz
);

CREATE INDEX tenants_updated_at ON tenants (updated_at);

CREATE TABLE audit_log (
    id         text COLLATE "C" PRIMARY KEY,
    at         timestamptz      NOT NULL,
    actor      text COLLATE "C" NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    action     text COLLATE "C" NOT NULL,
    target     text COLLATE "C" NOT NULL,
    before     json, -- NULL: there was nothing before, or there is nothing to say
    after      json
);

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
