-- +goose Up

-- Files that clients uploaded or that were made for them. The contents are in the
-- queue's object store, under the same ids.
CREATE TABLE files (
    id         text COLLATE "C" PRIMARY KEY,
    tenant     text COLLATE "C" NOT NULL,
    purpose    text             NOT NULL,
    filename   text             NOT NULL,
    bytes      bigint           NOT NULL,
    digest     text             NOT NULL, -- SHA-256 of the content, in hexadecimal
    created_at timestamptz      NOT NULL,
    expires_at timestamptz -- NULL: never
);

-- A tenant's list goes either way by time; id settles a tie.
CREATE INDEX files_tenant_created ON files (tenant, created_at, id);
CREATE INDEX files_expires ON files (expires_at, id) WHERE expires_at IS NOT NULL;

-- +goose Down
DROP TABLE files;
