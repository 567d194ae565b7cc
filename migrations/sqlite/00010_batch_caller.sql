-- +goose Up

-- What the caller of a batch may ask for, as a JSON object, where no key says it: a token
-- did, and tokens are not kept. NULL for all others.
ALTER TABLE batches ADD COLUMN caller TEXT;

-- +goose Down
ALTER TABLE batches DROP COLUMN caller;
