-- +goose Up

-- Batches. Their lines are rows of jobs. Each end of a line raises counts here: none of
-- those stands in an index, so that such a change stays within the row's page.
CREATE TABLE batches (
    id                text COLLATE "C" PRIMARY KEY,
    tenant            text COLLATE "C" NOT NULL,
    key_id            text             NOT NULL,
    key_name          text             NOT NULL,
    endpoint          text             NOT NULL,
    kind              text             NOT NULL,
    model             text             NOT NULL, -- as the first line asks for it
    input_file        text             NOT NULL,
    completion_window bigint           NOT NULL, -- in microseconds, as the next
    output_expires    bigint           NOT NULL, -- zero: nobody said
    metadata          jsonb,
    status            text COLLATE "C" NOT NULL CHECK (status IN ('validating', 'failed', 'in_progress',
        'finalizing', 'completed', 'expired', 'cancelling', 'cancelled')),
    created_at        timestamptz      NOT NULL,
    expires_at        timestamptz      NOT NULL, -- the end of the window
    in_progress_at    timestamptz,
    finalizing_at     timestamptz,
    completed_at      timestamptz,
    failed_at         timestamptz,
    expired_at        timestamptz,
    cancelling_at     timestamptz,
    cancelled_at      timestamptz,
    read_bytes        bigint           NOT NULL DEFAULT 0,
    total             bigint           NOT NULL DEFAULT 0,
    completed         bigint           NOT NULL DEFAULT 0,
    failed            bigint           NOT NULL DEFAULT 0,
    prompt_tokens     bigint           NOT NULL DEFAULT 0,
    completion_tokens bigint           NOT NULL DEFAULT 0,
    cached_tokens     bigint           NOT NULL DEFAULT 0,
    reasoning_tokens  bigint           NOT NULL DEFAULT 0,
    output_file       text             NOT NULL DEFAULT '',
    error_file        text             NOT NULL DEFAULT '',
    faults            jsonb, -- an array
    rate              double precision NOT NULL DEFAULT 0, -- lines a second, lately
    owner             text COLLATE "C" NOT NULL DEFAULT '',
    leased_until      timestamptz,
    dropped           boolean          NOT NULL DEFAULT false, -- it ended and its lines are gone
    purge_at          timestamptz
);

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
