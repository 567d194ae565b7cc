-- +goose Up

-- Answers that may be given again. A body is what a client was told: it is as sensitive as
-- a job's. Rows are written once and go whole.
CREATE TABLE cache_answers (
    key         BLOB NOT NULL PRIMARY KEY CHECK (length(key) = 32),
    kind        TEXT NOT NULL,
    tenant      TEXT NOT NULL,
    key_id      TEXT NOT NULL, -- the API key whose request was answered first
    model       TEXT NOT NULL,
    provider    TEXT NOT NULL,
    served      TEXT NOT NULL,
    dropped     TEXT NOT NULL,
    body        BLOB NOT NULL,
    size        INTEGER NOT NULL, -- bytes that it counts for
    generation  INTEGER NOT NULL, -- the last purge that was known when the request came
    created_at  INTEGER NOT NULL,
    fresh_until INTEGER NOT NULL,
    stale_until INTEGER NOT NULL
) STRICT;

-- The oldest go first; the sum of the sizes is read from here alone.
CREATE INDEX cache_answers_created ON cache_answers (created_at, key, size);
CREATE INDEX cache_answers_stale ON cache_answers (stale_until);

-- What was told to be forgotten, and until nothing of it is left. An empty text covers
-- everything. An id is never used again, since answers name the last one they know.
CREATE TABLE cache_purges (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    model     TEXT NOT NULL,
    tenant    TEXT NOT NULL,
    key_id    TEXT NOT NULL,
    purged_at INTEGER NOT NULL
) STRICT;

-- +goose Down
DROP TABLE cache_purges;
DROP TABLE cache_answers;
