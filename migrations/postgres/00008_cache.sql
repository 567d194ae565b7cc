-- +goose Up

-- Answers that may be given again. A body is what a client was told: it is as sensitive as
-- a job's. Rows are written once and go whole.
CREATE TABLE cache_answers (
    key         bytea NOT NULL PRIMARY KEY CHECK (octet_length(key) = 32),
    kind        text NOT NULL,
    tenant      text NOT NULL,
    key_id      text NOT NULL, -- the API key whose request was answered first
    model       text NOT NULL,
    provider    text NOT NULL,
    served      text NOT NULL,
    dropped     text NOT NULL,
    body        bytea NOT NULL,
    size        bigint NOT NULL, -- bytes that it counts for
    generation  bigint NOT NULL, -- the last purge that was known when the request came
    created_at  timestamptz NOT NULL,
    fresh_until timestamptz NOT NULL,
    stale_until timestamptz NOT NULL
);

-- The oldest go first; the sum of the sizes is read from here alone.
CREATE INDEX cache_answers_created ON cache_answers (created_at, key) INCLUDE (size);
CREATE INDEX cache_answers_stale ON cache_answers (stale_until);

-- What was told to be forgotten, and until nothing of it is left. An empty text covers
-- everything. An id is never used again, since answers name the last one they know.
CREATE TABLE cache_purges (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model     text NOT NULL,
    tenant    text NOT NULL,
    key_id    text NOT NULL,
    purged_at timestamptz NOT NULL
);

-- +goose Down
DROP TABLE cache_purges;
DROP TABLE cache_answers;
