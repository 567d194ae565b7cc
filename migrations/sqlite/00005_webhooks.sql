-- +goose Up

-- The endpoints of tenants. The secrets are kept as they are, because every delivery is
-- signed with them: who reads this table can sign as this Sluice does.
CREATE TABLE webhooks (
    id            TEXT    NOT NULL PRIMARY KEY,
    tenant        TEXT    NOT NULL,
    url           TEXT    NOT NULL,
    events        TEXT    NOT NULL, -- types with a space between them; empty: all
    secret        TEXT    NOT NULL,
    old_secret    TEXT    NOT NULL DEFAULT '',
    old_until     INTEGER,          -- until when the old secret signs too
    created_at    INTEGER NOT NULL,
    failing_since INTEGER,          -- NULL: the last attempt succeeded, or there was none
    resume_at     INTEGER,          -- until when it asked to be left alone
    disabled_at   INTEGER,
    disabled_for  TEXT    NOT NULL DEFAULT ''
) STRICT;

CREATE INDEX webhooks_tenant ON webhooks (tenant, created_at, id);

-- With these the webhooks are signed that a single job names.
CREATE TABLE webhook_secrets (
    tenant     TEXT NOT NULL PRIMARY KEY,
    secret     TEXT NOT NULL,
    old_secret TEXT NOT NULL DEFAULT '',
    old_until  INTEGER
) STRICT;

CREATE TABLE webhook_events (
    id         TEXT    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    type       TEXT    NOT NULL,
    object_id  TEXT    NOT NULL,
    target     TEXT    NOT NULL, -- an address beside the endpoints'; empty: none
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX webhook_events_created ON webhook_events (created_at, id);

-- One row for each endpoint that an event goes to, and one with no webhook_id for the
-- event's own target. A lane is what is delivered to in turn: an endpoint, or a host.
CREATE TABLE webhook_deliveries (
    event_id   TEXT    NOT NULL,
    webhook_id TEXT    NOT NULL,
    lane       TEXT    NOT NULL,
    state      TEXT    NOT NULL DEFAULT 'pending',
    failed     INTEGER NOT NULL DEFAULT 0, -- attempts since the schedule began
    attempts   INTEGER NOT NULL DEFAULT 0, -- ever
    next_at    INTEGER NOT NULL,           -- when it is due; when leased, the lease's end
    lease      TEXT    NOT NULL DEFAULT '',
    created_at INTEGER NOT NULL,
    ended_at   INTEGER,
    PRIMARY KEY (event_id, webhook_id)
) STRICT;

CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_lane ON webhook_deliveries (lane, next_at, event_id) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_leased ON webhook_deliveries (lane, next_at) WHERE lease <> '';
CREATE INDEX webhook_deliveries_webhook ON webhook_deliveries (webhook_id, created_at, event_id);

CREATE TABLE webhook_attempts (
    event_id   TEXT    NOT NULL,
    webhook_id TEXT    NOT NULL,
    number     INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    status     INTEGER NOT NULL, -- zero: there was no answer
    failure    TEXT    NOT NULL,
    took_us    INTEGER NOT NULL,
    PRIMARY KEY (event_id, webhook_id, number)
) STRICT, WITHOUT ROWID;

-- What belongs to a row goes with it. SQLite looks after references only on connections
-- that ask it to; a trigger holds on all of them.
-- +goose StatementBegin
CREATE TRIGGER webhook_events_gone AFTER DELETE ON webhook_events BEGIN
    DELETE FROM webhook_deliveries WHERE event_id = old.id;
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER webhook_deliveries_gone AFTER DELETE ON webhook_deliveries BEGIN
    DELETE FROM webhook_attempts WHERE event_id = old.event_id AND webhook_id = old.webhook_id;
END;
-- +goose StatementEnd

-- +goose Down
DROP TABLE webhook_attempts;
DROP TABLE webhook_deliveries;
DROP TABLE webhook_events;
DROP TABLE webhook_secrets;
DROP TABLE webhooks;
