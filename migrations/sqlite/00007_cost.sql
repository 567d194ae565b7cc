-- +goose Up

-- What a request cost, in billionths of the currency, and whether that is known: of rows
-- from before it is not. The cache is 'hit' or 'stale' where the answer came from it.
--
-- Reports go by ranges of time, of all rows or of those of a tenant or a key, and there
-- are indexes for these. Models and providers are few, so that an index on them would save
-- no report much, and would cost every request.
ALTER TABLE usage_records ADD COLUMN cost   INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_records ADD COLUMN priced INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_records ADD COLUMN cache  TEXT    NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE usage_records DROP COLUMN cache;
ALTER TABLE usage_records DROP COLUMN priced;
ALTER TABLE usage_records DROP COLUMN cost;
