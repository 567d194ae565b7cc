-- +goose Up

-- Files that clients uploaded or that were made for them. The contents are in the
-- queue's object store, under the same ids.
CREATE TABLE files (
    id         TEXT    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    purpose    TEXT    NOT NULL,
    filename   TEXT    NOT NULL,
    bytes      INTEGER NOT NULL,
    digest     TEXT    NOT NULL, -- SHA-256 of the content, in hexadecimal
    created_at INTEGER NOT NULL,
    expires_at INTEGER -- NULL: never
) STRICT;

-- A tenant's list goes either way by time; id settles a tie.
CREATE INDEX files_tenant_created ON files (tenant, created_at, id);
CREATE INDEX files_expires ON files (expires_at, id) WHERE expires_at IS NOT NULL;

-- +goose Down
DROP TABLE files;
