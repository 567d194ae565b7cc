-- +goose Up

-- Batches. Their lines are rows of jobs. Each end of a line raises counts here: none of
-- those stands in an index, so that such a change is one of a single page.
CREATE TABLE batches (
    id                TEXT    NOT NULL PRIMARY KEY,
    tenant            TEXT    NOT NULL,
    key_id            TEXT    NOT NULL,
    key_name          TEXT    NOT NULL,
    endpoint          TEXT    NOT NULL,
    kind              TEXT    NOT NULL,
    model             TEXT    NOT NULL, -- as the first line asks for it
    input_file        TEXT    NOT NULL,
    completion_window INTEGER NOT NULL, -- in microseconds, as the next
    output_expires    INTEGER NOT NULL, -- zero: nobody said
    metadata          TEXT,
    status            TEXT    NOT NULL CHECK (status IN ('validating', 'failed', 'in_progress',
        'finalizing', 'completed', 'expired', 'cancelling', 'cancelled')),
    created_at        INTEGER NOT NULL,
    expires_at        INTEGER NOT NULL, -- the end of the window
    in_progress_at    INTEGER,
    finalizing_at     INTEGER,
    completed_at      INTEGER,
    failed_at         INTEGER,
    expired_at        INTEGER,
    cancelling_at     INTEGER,
    cancelled_at      INTEGER,
    read_bytes        INTEGER NOT NULL DEFAULT 0,
    total             INTEGER NOT NULL DEFAULT 0,
    completed         INTEGER NOT NULL DEFAULT 0,
    failed            INTEGER NOT NULL DEFAULT 0,
    prompt_tokens     INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens     INTEGER NOT NULL DEFAULT 0,
    reasoning_tokens  INTEGER NOT NULL DEFAULT 0,
    output_file       TEXT    NOT NULL DEFAULT '',
    error_file        TEXT    NOT NULL DEFAULT '',
    faults            TEXT, -- an array
    rate              REAL    NOT NULL DEFAULT 0, -- lines a second, lately
    owner             TEXT    NOT NULL DEFAULT '',
    leased_until      INTEGER,
    dropped           INTEGER NOT NULL DEFAULT 0, -- it ended and its lines are gone
    purge_at          INTEGER
) STRICT;

CREATE INDEX batches_tenant_created ON batches (tenant, created_at, id);

-- Nearly all batches have ended, and stand in neither of the first two.
CREATE INDEX batches_unfinished ON batches (created_at, id)
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
CREATE INDEX batches_undropped ON batches (id)
    WHERE status IN ('failed', 'completed', 'expired', 'cancelled') AND NOT dropped;
CREATE INDEX batches_purge ON batches (purge_at) WHERE dropped;

-- The lines for the output file and those for the error file, each in order. A line is in
-- one of them, and only when it is finished.
CREATE INDEX jobs_lines_completed ON jobs (batch_id, line)
    WHERE batch_id <> '' AND finished_at IS NOT NULL AND response_status BETWEEN 200 AND 299;
CREATE INDEX jobs_lines_failed ON jobs (batch_id, line)
    WHERE batch_id <> '' AND finished_at IS NOT NULL AND response_status NOT BETWEEN 200 AND 299;

-- +goose Down
DROP INDEX jobs_lines_failed;
DROP INDEX jobs_lines_completed;
DROP TABLE batches;
