-- +goose Up

-- What the caller of a job may take, as a JSON object, where no key says it: a token did,
-- and tokens are not kept. NULL for all others.
ALTER TABLE jobs ADD COLUMN limits TEXT;

-- +goose Down
ALTER TABLE jobs DROP COLUMN limits;
