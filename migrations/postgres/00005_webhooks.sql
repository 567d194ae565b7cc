-- +goose Up

-- The endpoints of tenants. The secrets are kept as they are, because every delivery is
-- signed with them: who reads this table can sign as this Sluice does.
CREATE TABLE webhooks (
    id            text COLLATE "C" PRIMARY KEY,
    tenant        text COLLATE "C" NOT NULL,
    url           text             NOT NULL,
    events        text COLLATE "C" NOT NULL, -- types with a space between them; empty: all
    secret        text             NOT NULL,
    old_secret    text             NOT NULL DEFAULT '',
    old_until     timestamptz,               -- until when the old secret signs too
    created_at    timestamptz      NOT NULL DEFAULT clock_timestamp(),
    failing_since timestamptz,               -- NULL: the last attempt succeeded, or there was none
    resume_at     timestamptz,               -- until when it asked to be left alone
    disabled_at   timestamptz,
    disabled_for  text             NOT NULL DEFAULT ''
);

CREATE INDEX webhooks_tenant ON webhooks (tenant, created_at, id);

-- With these the webhooks are signed that a single job names.
CREATE TABLE webhook_secrets (
    tenant     text COLLATE "C" PRIMARY KEY,
    secret     text NOT NULL,
    old_secret text NOT NULL DEFAULT '',
    old_until  timestamptz
);

CREATE TABLE webhook_events (
    id         text COLLATE "C" PRIMARY KEY,
    tenant     text COLLATE "C" NOT NULL,
    type       text             NOT NULL,
    object_id  text             NOT NULL,
    target     text             NOT NULL, -- an address beside the endpoints'; empty: none
    created_at timestamptz      NOT NULL
);

CREATE INDEX webhook_events_created ON webhook_events (created_at, id);

-- One row for each endpoint that an event goes to, and one with no webhook_id for the
-- event's own target. A lane is what is delivered to in turn: an endpoint, or a host.
CREATE TABLE webhook_deliveries (
    event_id   text COLLATE "C" NOT NULL REFERENCES webhook_events ON DELETE CASCADE,
    webhook_id text COLLATE "C" NOT NULL,
    lane       text COLLATE "C" NOT NULL,
    state      text             NOT NULL DEFAULT 'pending',
    failed     bigint           NOT NULL DEFAULT 0, -- attempts since the schedule began
    attempts   bigint           NOT NULL DEFAULT 0, -- ever
    next_at    timestamptz      NOT NULL DEFAULT clock_timestamp(), -- when it is due; when leased, the lease's end
    lease      text             NOT NULL DEFAULT '',
    created_at timestamptz      NOT NULL DEFAULT clock_timestamp(),
    ended_at   timestamptz,
    PRIMARY KEY (event_id, webhook_id)
);

CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_lane ON webhook_deliveries (lane, next_at, event_id) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_leased ON webhook_deliveries (lane, next_at) WHERE lease <> '';
CREATE INDEX webhook_deliveries_webhook ON webhook_deliveries (webhook_id, created_at, event_id);

CREATE TABLE webhook_attempts (
    event_id   text COLLATE "C" NOT NULL,
    webhook_id text COLLATE "C" NOT NULL,
    number     bigint           NOT NULL,
    at         timestamptz      NOT NULL,
    status     bigint           NOT NULL, -- zero: there was no answer
    failure    text             NOT NULL,
    took_us    bigint           NOT NULL,
    PRIMARY KEY (event_id, webhook_id, number),
    FOREIGN KEY (event_id, webhook_id) REFERENCES webhook_deliveries ON DELETE CASCADE
);

-- +goose Down
DROP TABLE webhook_attempts;
DROP TABLE webhook_deliveries;
DROP TABLE webhook_events;
DROP TABLE webhook_secrets;
DROP TABLE webhooks;
