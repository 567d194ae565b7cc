package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"sluice/internal/webhook"
	"sluice/store"
	"sluice/store/internal/statement"
)

// AppendEvent implements store.Deliveries.
func (s *Store) AppendEvent(ctx context.Context, e store.Event) (deliveries int, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		deliveries, err = appendEvents(ctx, tx, []store.Event{e})
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("append event %s: %w", e.ID, err)
	}
	return deliveries, nil
}

// appendEvents writes events and their deliveries in the transaction of what they tell,
// and returns how many deliveries that made.
func appendEvents(ctx context.Context, tx *sql.Tx, events []store.Event) (deliveries int, err error) {
	if err := store.ValidEvents(events); err != nil {
		return 0, err
	}
	now := micros(time.Now())
	for _, e := range events {
		n, err := execTx(ctx, tx, statement.InsertEvent, e.ID, e.Tenant, e.Type, e.ObjectID, e.Target, micros(e.CreatedAt))
		if err != nil {
			return 0, fmt.Errorf("store event %s: %w", e.ID, err)
		}
		if n == 0 {
			continue // it is stored already
		}
		if n, err = execTx(ctx, tx, statement.InsertDeliveries(clockAt("$5")), e.ID, e.Tenant, e.Type, e.Only, now); err != nil {
			return 0, fmt.Errorf("store deliveries of event %s: %w", e.ID, err)
		}
		deliveries += n
		if e.Target == "" {
			continue
		}
		if _, err := execTx(ctx, tx, statement.InsertTargetDelivery(clockAt("$3")), e.ID, webhook.Lane(e.Tenant, e.Target), now); err != nil {
			return 0, fmt.Errorf("store delivery of event %s: %w", e.ID, err)
		}
		deliveries++
	}
	return deliveries, nil
}

// Redeliver implements store.Deliveries.
func (s *Store) Redeliver(ctx context.Context, eventID, webhookID string) error {
	eventID, webhookID = store.CleanText(eventID), store.CleanText(webhookID)
	err := s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		n, err := execTx(ctx, tx, statement.Redeliver(clockAt("$3")), eventID, webhookID, micros(time.Now()))
		if err == nil && n == 0 {
			return store.ErrNotFound
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("redeliver event %q: %w", eventID, err)
	}
	return nil
}

// Redeliverable implements store.Deliveries.
func (s *Store) Redeliverable(ctx context.Context, eventID, webhookID string) error {
	eventID, webhookID = store.CleanText(eventID), store.CleanText(webhookID)
	found, err := query(ctx, s.reader, scanInt, statement.Redeliverable, eventID, webhookID)
	if err == nil && len(found) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("look up event %q: %w", eventID, err)
	}
	return nil
}

// way is a lane and how many of its deliveries may be taken.
type way struct {
	lane string
	room int
}

// due is a delivery that may be taken, at its place in its lane.
type due struct {
	event, webhook string
	at             int64
	place          int
}

const (
	anyDue  = `SELECT 1 FROM webhook_deliveries WHERE state = 'pending' AND next_at <= $1 LIMIT 1`
	dueIn   = `SELECT event_id, webhook_id, next_at FROM webhook_deliveries WHERE lane = $1 AND state = 'pending' AND next_at <= $2 ORDER BY next_at, event_id LIMIT $3`
	takeOne = `UPDATE webhook_deliveries SET lease = $3, next_at = $4 WHERE event_id = $1 AND webhook_id = $2`
)

// LeaseDeliveries implements store.Deliveries. The lease's end stands where the time of
// the next attempt does: what nobody finishes is due then.
func (s *Store) LeaseDeliveries(ctx context.Context, r store.LeaseRequest) ([]store.Delivery, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	// Asked beside the writers first, because nearly always the answer is no.
	some, err := query(ctx, s.reader, func(rows *sql.Rows) (n int, err error) { return n, rows.Scan(&n) }, anyDue, micros(time.Now()))
	if err != nil {
		return nil, fmt.Errorf("look for due deliveries: %w", err)
	}
	if len(some) == 0 {
		return nil, nil
	}
	var leased []store.Delivery
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		now := time.Now()
		found, err := dueDeliveries(ctx, tx, r, now)
		if err != nil {
			return err
		}
		for _, d := range found[:min(len(found), r.Most)] {
			if _, err := execTx(ctx, tx, takeOne, d.event, d.webhook, r.Lease, micros(now.Add(r.For))); err != nil {
				return err
			}
		}
		leased, err = queryTx(ctx, tx, scanDelivery, statement.Leased(clockAt("$2")), r.Lease, micros(now))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lease deliveries: %w", err)
	}
	for i := range leased {
		leased[i].Lease = r.Lease
	}
	return leased, nil
}

// dueDeliveries returns what may be taken: of each lane the oldest before any lane's second.
func dueDeliveries(ctx context.Context, tx *sql.Tx, r store.LeaseRequest, now time.Time) ([]due, error) {
	ways, err := queryTx(ctx, tx, func(rows *sql.Rows) (w way, err error) { return w, rows.Scan(&w.lane, &w.room) },
		statement.Lanes("$1", "$2")+" SELECT lane, room FROM ways WHERE room > 0", micros(now), r.PerLane)
	if err != nil {
		return nil, err
	}
	var found []due
	for _, w := range ways {
		list, err := queryTx(ctx, tx, func(rows *sql.Rows) (d due, err error) { return d, rows.Scan(&d.event, &d.webhook, &d.at) },
			dueIn, w.lane, micros(now), min(w.room, r.Most))
		if err != nil {
			return nil, err
		}
		for i := range list {
			list[i].place = i
		}
		found = append(found, list...)
	}
	slices.SortFunc(found, func(a, b due) int { return cmp.Or(cmp.Compare(a.place, b.place), cmp.Compare(a.at, b.at)) })
	return found, nil
}

// FinishAttempt implements store.Deliveries.
func (s *Store) FinishAttempt(ctx context.Context, a store.Attempt) (disabledFor string, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		now := micros(time.Now())
		if err := finishDelivery(ctx, tx, a, now); err != nil {
			return err
		}
		disabledFor, err = judgeEndpoint(ctx, tx, a, now)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("finish attempt to deliver event %s: %w", a.Delivery.Event.ID, err)
	}
	return disabledFor, nil
}

func finishDelivery(ctx context.Context, tx *sql.Tx, a store.Attempt, now int64) error {
	d := a.Delivery
	failed := d.Failed
	if a.State != store.DeliveryDelivered {
		failed++
	}
	var number int64
	err := tx.QueryRowContext(ctx, statement.FinishDelivery(clockAt("$7")),
		d.Event.ID, d.WebhookID, d.Lease, string(a.State), failed, a.Wait.Microseconds(), now).Scan(&number)
	if errors.Is(err, sql.ErrNoRows) {
		return store.ErrLeaseLost
	}
	if err != nil {
		return err
	}
	_, err = execTx(ctx, tx, statement.InsertAttempt, d.Event.ID, d.WebhookID, number,
		micros(a.At), a.Status, store.CleanText(a.Failure), a.Took.Microseconds())
	if err != nil {
		return err
	}
	_, err = execTx(ctx, tx, statement.TrimAttempts, d.Event.ID, d.WebhookID, number-store.MaxAttempts)
	return err
}

// judgeEndpoint notes what the attempt says of its endpoint, if it went to one.
func judgeEndpoint(ctx context.Context, tx *sql.Tx, a store.Attempt, now int64) (disabledFor string, err error) {
	id := a.Delivery.WebhookID
	if id == "" {
		return "", nil
	}
	if a.State == store.DeliveryDelivered {
		_, err := execTx(ctx, tx, statement.EndpointWell, id)
		return "", err
	}
	err = tx.QueryRowContext(ctx, statement.EndpointFailed(clockAt("$5")),
		id, a.Pause.Microseconds(), a.Gone, a.DisableAfter.Microseconds(), now).Scan(&disabledFor)
	already := errors.Is(err, sql.ErrNoRows) // by another attempt; this delivery is not to wait for it either
	if err != nil && !already || err == nil && disabledFor == "" {
		return "", err
	}
	_, err = execTx(ctx, tx, statement.GiveUpDeliveries(clockAt("$2")), id, now)
	return disabledFor, err
}

// Deliveries implements store.Deliveries.
func (s *Store) Deliveries(ctx context.Context, f store.DeliveryFilter) ([]store.DeliveryReport, error) {
	deliveries, attempts, args := statement.SelectDeliveries(f)
	reports, err := query(ctx, s.reader, scanReport, deliveries, args...)
	if err != nil {
		return nil, fmt.Errorf("list deliveries: %w", err)
	}
	log, err := query(ctx, s.reader, scanAttempt, attempts, args...)
	if err != nil {
		return nil, fmt.Errorf("list attempts: %w", err)
	}
	return statement.WithAttempts(reports, log), nil
}

// PruneEvents implements store.Deliveries.
func (s *Store) PruneEvents(ctx context.Context, keep time.Duration, most int) (n int, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		now := micros(time.Now())
		for _, table := range statement.SecretTables {
			if _, err := execTx(ctx, tx, statement.ForgetSecrets(table, clockAt("$1")), now); err != nil {
				return err
			}
		}
		n, err = execTx(ctx, tx, statement.PruneEvents(clockAt("$3")), -keep.Microseconds(), most, now)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("prune events: %w", err)
	}
	return n, nil
}

func scanDelivery(rows *sql.Rows) (store.Delivery, error) {
	var (
		d              store.Delivery
		created        int64
		secret, before string
	)
	e := &d.Event
	err := rows.Scan(&e.ID, &d.WebhookID, &d.Failed, &e.Tenant, &e.Type, &e.ObjectID, &e.Target, &created, &d.URL, &secret, &before)
	if err != nil {
		return store.Delivery{}, err
	}
	e.CreatedAt = fromMicros(created)
	d.Secrets = statement.Secrets(secret, before)
	return d, nil
}

func scanReport(rows *sql.Rows) (store.DeliveryReport, error) {
	var (
		r             store.DeliveryReport
		created, next int64
		ended         sql.NullInt64
	)
	err := rows.Scan(&r.EventID, &r.Type, &r.ObjectID, &r.Tenant, &r.WebhookID, &r.State, &r.Attempts, &created, &next, &ended)
	if err != nil {
		return store.DeliveryReport{}, err
	}
	r.CreatedAt, r.NextAt, r.EndedAt = fromMicros(created), fromMicros(next), fromNullMicros(ended)
	return r, nil
}

func scanAttempt(rows *sql.Rows) (statement.LoggedAttempt, error) {
	var (
		a        statement.LoggedAttempt
		at, took int64
	)
	if err := rows.Scan(&a.EventID, &a.WebhookID, &a.Number, &at, &a.Status, &a.Failure, &took); err != nil {
		return statement.LoggedAttempt{}, err
	}
	a.At, a.Took = fromMicros(at), time.Duration(took)*time.Microsecond
	return a, nil
}
