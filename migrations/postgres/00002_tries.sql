-- +goose Up

-- The calls of providers that failed before a request ended, oldest first, as a JSON
-- array; NULL when there were none, as for nearly every request.
ALTER TABLE usage_records ADD COLUMN tries jsonb;

-- +goose Down
ALTER TABLE usage_records DROP COLUMN tries;
