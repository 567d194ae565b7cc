package statement

import (
	"fmt"
	"strings"

	"sluice/store"
)

// Clock is how a database says what time it is, and a time some microseconds later.
type Clock struct {
	Now  string
	Plus func(at, micros string) string
}

// WebhookColumns are the columns of an endpoint, in the order in which they are read.
const WebhookColumns = `id, tenant, url, events, created_at, failing_since, disabled_at, disabled_for`

// The reading and removing of endpoints. ListWebhooks takes the tenant, the others the id.
const (
	ListWebhooks  = `SELECT ` + WebhookColumns + ` FROM webhooks WHERE $1 = '' OR tenant = $1 ORDER BY tenant, created_at, id`
	GetWebhook    = `SELECT ` + WebhookColumns + ` FROM webhooks WHERE id = $1`
	DeleteWebhook = `DELETE FROM webhooks WHERE id = $1`
	EnableWebhook = `UPDATE webhooks SET failing_since = NULL, resume_at = NULL, disabled_at = NULL, disabled_for = ''
		WHERE id = $1 RETURNING ` + WebhookColumns

	// DeleteDeliveries goes with DeleteWebhook.
	DeleteDeliveries = `DELETE FROM webhook_deliveries WHERE webhook_id = $1`
)

// RotateWebhook takes id, secret and the overlap in microseconds.
func RotateWebhook(c Clock) string {
	return `UPDATE webhooks SET old_secret = secret, old_until = ` + c.Plus(c.Now, "$3") + `, secret = $2
		WHERE id = $1 RETURNING ` + WebhookColumns
}

// KeepTenantSigner takes the tenant and a secret for one that has none; it returns the
// one that the tenant has then.
const KeepTenantSigner = `INSERT INTO webhook_secrets (tenant, secret) VALUES ($1, $2)
	ON CONFLICT (tenant) DO UPDATE SET secret = webhook_secrets.secret RETURNING secret`

// RotateTenantSecret takes tenant, secret and the overlap in microseconds.
func RotateTenantSecret(c Clock) string {
	return `INSERT INTO webhook_secrets (tenant, secret) VALUES ($1, $2)
		ON CONFLICT (tenant) DO UPDATE SET old_secret = webhook_secrets.secret,
			old_until = ` + c.Plus(c.Now, "$3") + `, secret = excluded.secret`
}

// InsertEvent takes id, tenant, type, object id, target and time.
const InsertEvent = `INSERT INTO webhook_events (id, tenant, type, object_id, target, created_at)
	VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO NOTHING`

// InsertDeliveries makes the deliveries of a new event to endpoints. It takes the
// event's id, tenant and type, and the one endpoint that it is for, if it is for one.
func InsertDeliveries(c Clock) string {
	return `INSERT INTO webhook_deliveries (event_id, webhook_id, lane, next_at, created_at)
		SELECT $1, id, id, ` + c.Now + `, ` + c.Now + ` FROM webhooks
		WHERE tenant = $2 AND disabled_at IS NULL
			AND (id = $4 OR $4 = '' AND (events = '' OR ' ' || events || ' ' LIKE '% ' || $3 || ' %'))`
}

// InsertTargetDelivery takes the event's id and the lane of its own target.
func InsertTargetDelivery(c Clock) string {
	return `INSERT INTO webhook_deliveries (event_id, webhook_id, lane, next_at, created_at)
		VALUES ($1, '', $2, ` + c.Now + `, ` + c.Now + `)`
}

// What can be delivered again, by the ids of the event and of the endpoint: to an endpoint
// in force of the event's tenant, or to the event's own target, which has no id.
const (
	toEndpoint = ` FROM webhook_events e, webhooks w
		WHERE e.id = $1 AND w.id = $2 AND w.tenant = e.tenant AND w.disabled_at IS NULL`
	toTarget = ` FROM webhook_deliveries WHERE event_id = $1 AND webhook_id = $2 AND webhook_id = ''`
)

// Redeliverable has a row if Redeliver of the same would change one.
const Redeliverable = `SELECT 1` + toEndpoint + ` UNION ALL SELECT 1` + toTarget

// Redeliver takes the event's id and the endpoint's, which is empty for its own target. A
// lease is left to whoever has it: the attempt in its hands may be the one that is asked for.
func Redeliver(c Clock) string {
	return `INSERT INTO webhook_deliveries (event_id, webhook_id, lane, next_at, created_at)
		SELECT e.id, w.id, w.id, ` + c.Now + `, ` + c.Now + toEndpoint + `
		UNION ALL
		SELECT event_id, webhook_id, lane, ` + c.Now + `, ` + c.Now + toTarget + `
		ON CONFLICT (event_id, webhook_id) DO UPDATE SET state = 'pending', failed = 0, ended_at = NULL,
			next_at = CASE WHEN webhook_deliveries.lease = '' THEN excluded.next_at ELSE webhook_deliveries.next_at END`
}

// Lanes are the lanes of which something is pending, and how many of their deliveries may
// be taken. It steps from lane to lane through an index, so that it costs nothing more
// where one of them has a long way to go. perLane is a parameter's name.
func Lanes(now, perLane string) string {
	return `WITH RECURSIVE lanes (lane) AS (
			SELECT min(lane) FROM webhook_deliveries WHERE state = 'pending'
			UNION ALL
			SELECT (SELECT min(d.lane) FROM webhook_deliveries d WHERE d.state = 'pending' AND d.lane > lanes.lane)
			FROM lanes WHERE lanes.lane IS NOT NULL
		), ways (lane, room) AS (
			SELECT l.lane, CASE WHEN w.failing_since IS NULL THEN ` + perLane + ` ELSE 1 END - (
				SELECT count(*) FROM webhook_deliveries b WHERE b.lane = l.lane AND b.lease <> '' AND b.next_at > ` + now + `)
			FROM lanes l LEFT JOIN webhooks w ON w.id = l.lane
			WHERE l.lane IS NOT NULL AND (w.resume_at IS NULL OR w.resume_at <= ` + now + `)
		)`
}

// Leased reads what the lease $1 holds.
func Leased(c Clock) string {
	return `SELECT d.event_id, d.webhook_id, d.failed, e.tenant, e.type, e.object_id, e.target, e.created_at,
			coalesce(w.url, e.target), coalesce(w.secret, s.secret, ''),
			CASE WHEN coalesce(w.old_until, s.old_until) > ` + c.Now + ` THEN coalesce(w.old_secret, s.old_secret) ELSE '' END
		FROM webhook_deliveries d JOIN webhook_events e ON e.id = d.event_id
		LEFT JOIN webhooks w ON w.id = d.webhook_id
		LEFT JOIN webhook_secrets s ON d.webhook_id = '' AND s.tenant = e.tenant
		WHERE d.lease = $1 AND d.lease <> '' ORDER BY d.created_at, d.event_id, d.webhook_id`
}

// FinishDelivery takes the event's id, the endpoint's, the lease, the state that follows,
// how many attempts have failed, and the wait in microseconds; it returns the number of
// the attempt.
func FinishDelivery(c Clock) string {
	return `UPDATE webhook_deliveries SET state = $4, failed = $5, attempts = attempts + 1, lease = '',
			next_at = ` + c.Plus(c.Now, "$6") + `,
			ended_at = CASE WHEN $4 = 'pending' THEN NULL ELSE ` + c.Now + ` END
		WHERE event_id = $1 AND webhook_id = $2 AND lease = $3 AND lease <> '' RETURNING attempts`
}

// The log of attempts. InsertAttempt takes the event's id, the endpoint's, number, time,
// status, failure and duration; TrimAttempts the first two and the newest number to go.
const (
	InsertAttempt = `INSERT INTO webhook_attempts (event_id, webhook_id, number, at, status, failure, took_us)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`
	TrimAttempts = `DELETE FROM webhook_attempts WHERE event_id = $1 AND webhook_id = $2 AND number <= $3`
)

// EndpointWell notes a success of the endpoint $1.
const EndpointWell = `UPDATE webhooks SET failing_since = NULL, resume_at = NULL
	WHERE id = $1 AND (failing_since IS NOT NULL OR resume_at IS NOT NULL)`

// EndpointFailed notes a failure of the endpoint $1, which wants to be left alone for $2
// microseconds. It disables the endpoint if $3 says that it is gone, or if there were
// nothing but failures for $4 microseconds, and returns why it is disabled.
func EndpointFailed(c Clock) string {
	lasting := c.Plus("coalesce(failing_since, "+c.Now+")", "$4") + " <= " + c.Now
	return `UPDATE webhooks SET failing_since = coalesce(failing_since, ` + c.Now + `),
			resume_at = CASE WHEN CAST($2 AS bigint) > 0 THEN ` + c.Plus(c.Now, "$2") + ` ELSE resume_at END,
			disabled_at = CASE WHEN $3 OR ` + lasting + ` THEN ` + c.Now + ` END,
			disabled_for = CASE WHEN $3 THEN '` + store.DisabledGone + `' WHEN ` + lasting + ` THEN '` + store.DisabledFailing + `' ELSE '' END
		WHERE id = $1 AND disabled_at IS NULL RETURNING disabled_for`
}

// GiveUpDeliveries ends what waits for the endpoint $1. What is leased ends with its
// attempt.
func GiveUpDeliveries(c Clock) string {
	return `UPDATE webhook_deliveries SET state = 'failed', ended_at = ` + c.Now + `
		WHERE lane = $1 AND state = 'pending' AND lease = ''`
}

// ForgetSecrets removes the old secrets of a table that sign no more.
func ForgetSecrets(table string, c Clock) string {
	return `UPDATE ` + table + ` SET old_secret = '', old_until = NULL WHERE old_until <= ` + c.Now
}

// PruneEvents takes the age in microseconds, negative, and how many may go.
func PruneEvents(c Clock) string {
	limit := c.Plus(c.Now, "$1")
	return `DELETE FROM webhook_events WHERE id IN (
		SELECT e.id FROM webhook_events e WHERE e.created_at < ` + limit + ` AND NOT EXISTS (
			SELECT 1 FROM webhook_deliveries d WHERE d.event_id = e.id AND (d.ended_at IS NULL OR d.ended_at >= ` + limit + `))
		ORDER BY e.created_at, e.id LIMIT $2)`
}

// DeliveryColumns are the columns of a listed delivery, in the order in which they are read.
const DeliveryColumns = `d.event_id, e.type, e.object_id, e.tenant, d.webhook_id, d.state, d.attempts, d.created_at, d.next_at, d.ended_at`

// SelectDeliveries reads the deliveries that the filter selects, and selectAttempts,
// which takes the same arguments, the log of each of them.
func SelectDeliveries(f store.DeliveryFilter) (deliveries, attempts string, args []any) {
	f = f.Clean()
	conditions := []string{"1 = 1"}
	for _, c := range []struct{ column, value string }{
		{"e.tenant", f.Tenant}, {"d.webhook_id", f.WebhookID}, {"d.event_id", f.EventID}, {"d.state", string(f.State)},
	} {
		if c.value != "" {
			args = append(args, c.value)
			conditions = append(conditions, fmt.Sprintf("%s = $%d", c.column, len(args)))
		}
	}
	args = append(args, f.Limit)
	deliveries = fmt.Sprintf(`SELECT %s FROM webhook_deliveries d JOIN webhook_events e ON e.id = d.event_id
		WHERE %s ORDER BY d.created_at DESC, d.event_id DESC, d.webhook_id LIMIT $%d`,
		DeliveryColumns, strings.Join(conditions, " AND "), len(args))
	attempts = `SELECT a.event_id, a.webhook_id, a.number, a.at, a.status, a.failure, a.took_us
		FROM webhook_attempts a JOIN (` + deliveries + `) p ON p.event_id = a.event_id AND p.webhook_id = a.webhook_id
		ORDER BY a.event_id, a.webhook_id, a.number`
	return deliveries, attempts, args
}
