-- +goose Up

-- What requests cost, summed up by the day (of UTC) on which they were accepted, so that a
-- budget is answered by a few rows and not by a month of usage_records. A request that cost
-- nothing has no part in it. The sum of a day is whole * 1,000,000,000 + billionths, each
-- added up by itself, so that no number of rows overflows them.
--
-- Rows are updated all day in place, for which their pages keep room.
CREATE TABLE spend (
    key_id     text COLLATE "C" NOT NULL,
    day        timestamptz      NOT NULL, -- its beginning
    tenant     text COLLATE "C" NOT NULL,
    model      text COLLATE "C" NOT NULL, -- as the client asked for it
    whole      bigint           NOT NULL,
    billionths bigint           NOT NULL,
    PRIMARY KEY (key_id, day, tenant, model)
) WITH (fillfactor = 60);

-- The database itself adds up what is added to usage_records, in the same transaction: rows
-- that are left out because their job is there count for nothing, and a process that does
-- not know of the sums yet cannot leave its rows out of them. Sums are changed in the order
-- of their keys, so that two batches never wait for each other in a circle.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION add_spend() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO spend (key_id, day, tenant, model, whole, billionths)
        SELECT key_id, date_trunc('day', created_at, 'UTC') AS day, tenant, model_asked COLLATE "C" AS model,
            sum(cost / 1000000000), sum(cost % 1000000000)
        FROM added WHERE cost <> 0 GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
        ON CONFLICT ON CONSTRAINT spend_pkey DO UPDATE
            SET whole = spend.whole + excluded.whole, billionths = spend.billionths + excluded.billionths;
    RETURN NULL;
END
$$;
-- +goose StatementEnd

-- From here on nobody else adds rows until the migration is done.
CREATE TRIGGER usage_records_spend AFTER INSERT ON usage_records
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION add_spend();

INSERT INTO spend (key_id, day, tenant, model, whole, billionths)
    SELECT key_id, date_trunc('day', created_at, 'UTC') AS day, tenant, model_asked COLLATE "C" AS model,
        sum(cost / 1000000000), sum(cost % 1000000000)
    FROM usage_records WHERE cost <> 0 GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4;

CREATE INDEX spend_tenant ON spend (tenant, day);
CREATE INDEX spend_model ON spend (model, day);

-- +goose Down
DROP TRIGGER usage_records_spend ON usage_records;
DROP FUNCTION add_spend;
DROP TABLE spend;
