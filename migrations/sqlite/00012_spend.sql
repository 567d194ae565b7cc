-- +goose Up

-- What requests cost, summed up by the day (of UTC) on which they were accepted, so that a
-- budget is answered by a few rows and not by a month of usage_records. A request that cost
-- nothing has no part in it. The sum of a day is whole * 1,000,000,000 + billionths, each
-- added up by itself, so that no number of rows overflows them.
CREATE TABLE spend (
    key_id     TEXT    NOT NULL,
    day        INTEGER NOT NULL, -- its beginning
    tenant     TEXT    NOT NULL,
    model      TEXT    NOT NULL, -- as the client asked for it
    whole      INTEGER NOT NULL,
    billionths INTEGER NOT NULL,
    PRIMARY KEY (key_id, day, tenant, model)
) STRICT, WITHOUT ROWID;

-- The database itself adds up what is added to usage_records, in the same transaction: rows
-- that are left out because their job is there count for nothing, and a process that does
-- not know of the sums yet cannot leave its rows out of them. A remainder is below zero for
-- times before 1970, and the day begins before them all the same.
-- +goose StatementBegin
CREATE TRIGGER usage_records_spend AFTER INSERT ON usage_records WHEN new.cost <> 0 BEGIN
    INSERT INTO spend (key_id, day, tenant, model, whole, billionths)
        VALUES (new.key_id, new.created_at - (new.created_at % 86400000000 + 86400000000) % 86400000000,
            new.tenant, new.model_asked, new.cost / 1000000000, new.cost % 1000000000)
        ON CONFLICT (key_id, day, tenant, model) DO UPDATE
            SET whole = whole + excluded.whole, billionths = billionths + excluded.billionths;
END;
-- +goose StatementEnd

INSERT INTO spend (key_id, day, tenant, model, whole, billionths)
    SELECT key_id, created_at - (created_at % 86400000000 + 86400000000) % 86400000000 AS day, tenant, model_asked,
        sum(cost / 1000000000), sum(cost % 1000000000)
    FROM usage_records WHERE cost <> 0 GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4;

CREATE INDEX spend_tenant ON spend (tenant, day);
CREATE INDEX spend_model ON spend (model, day);

-- +goose Down
DROP TRIGGER usage_records_spend;
DROP TABLE spend;
