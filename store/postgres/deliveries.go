package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"sluice/internal/webhook"
	"sluice/store"
	"sluice/store/internal/statement"
)

// AppendEvent implements store.Deliveries.
func (s *Store) AppendEvent(ctx context.Context, e store.Event) (deliveries int, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		deliveries, err = appendEvents(ctx, tx, []store.Event{e})
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("append event %s: %w", e.ID, err)
	}
	return deliveries, nil
}

// insertDeliveries keeps endpoints from being removed until what goes to them is seen.
var insertDeliveries = statement.InsertDeliveries(clock) + " FOR KEY SHARE"

// appendEvents writes events and their deliveries in the transaction of what they tell,
// and returns how many deliveries that made. It takes two round trips, however many they
// are.
func appendEvents(ctx context.Context, tx pgx.Tx, events []store.Event) (deliveries int, err error) {
	if err := store.ValidEvents(events); err != nil || len(events) == 0 {
		return 0, err
	}
	var (
		news           []store.Event // that are not stored already
		insert, spread pgx.Batch
	)
	for _, e := range events {
		args := []any{e.ID, e.Tenant, e.Type, e.ObjectID, e.Target, store.CleanTime(e.CreatedAt)}
		insert.Queue(statement.InsertEvent, args...).Exec(func(tag pgconn.CommandTag) error {
			if tag.RowsAffected() > 0 {
				news = append(news, e)
			}
			return nil
		})
	}
	if err := tx.SendBatch(ctx, &insert).Close(); err != nil {
		return 0, fmt.Errorf("store events: %w", err)
	}
	count := func(tag pgconn.CommandTag) error {
		deliveries += int(tag.RowsAffected())
		return nil
	}
	for _, e := range news {
		spread.Queue(insertDeliveries, e.ID, e.Tenant, e.Type, e.Only).Exec(count)
		if e.Target != "" {
			spread.Queue(statement.InsertTargetDelivery(clock), e.ID, webhook.Lane(e.Tenant, e.Target)).Exec(count)
		}
	}
	if err := tx.SendBatch(ctx, &spread).Close(); err != nil {
		return 0, fmt.Errorf("store deliveries of events: %w", err)
	}
	return deliveries, nil
}

// Redeliver implements store.Deliveries.
func (s *Store) Redeliver(ctx context.Context, eventID, webhookID string) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	eventID, webhookID = store.CleanText(eventID), store.CleanText(webhookID)
	tag, err := s.pool.Exec(ctx, statement.Redeliver(clock), eventID, webhookID)
	if err == nil && tag.RowsAffected() == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("redeliver event %q: %w", eventID, err)
	}
	return nil
}

// Redeliverable implements store.Deliveries.
func (s *Store) Redeliverable(ctx context.Context, eventID, webhookID string) error {
	eventID, webhookID = store.CleanText(eventID), store.CleanText(webhookID)
	found, err := query(ctx, s, pgx.RowTo[int], statement.Redeliverable, eventID, webhookID)
	if err == nil && len(found) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("look up event %q: %w", eventID, err)
	}
	return nil
}

// lease takes what is due. Several ingresses ask at once and find the same deliveries;
// who comes second leaves out what the first one has locked, and, because the condition
// is looked at again under the lock, what it has taken. The lease's end stands where the
// time of the next attempt does: what nobody finishes is due then.
var lease = statement.Lanes(clock.Now, "$3::bigint") + `,
	ranked AS (
		SELECT d.event_id, d.webhook_id, d.next_at, d.place FROM ways CROSS JOIN LATERAL (
			SELECT event_id, webhook_id, next_at, row_number() OVER (ORDER BY next_at, event_id) AS place
			FROM webhook_deliveries
			WHERE lane = ways.lane AND state = 'pending' AND next_at <= ` + clock.Now + `
			ORDER BY next_at, event_id LIMIT greatest(ways.room, 0)) d
	),
	picked AS (SELECT event_id, webhook_id FROM ranked ORDER BY place, next_at LIMIT $4),
	locked AS (
		SELECT event_id, webhook_id FROM webhook_deliveries
		WHERE (event_id, webhook_id) IN (SELECT event_id, webhook_id FROM picked)
			AND state = 'pending' AND next_at <= ` + clock.Now + `
		FOR UPDATE SKIP LOCKED
	)
	UPDATE webhook_deliveries d SET lease = $1, next_at = ` + clock.Plus(clock.Now, "$2") + `
	FROM locked WHERE d.event_id = locked.event_id AND d.webhook_id = locked.webhook_id`

// anyDue is asked first, because nearly always the answer is no.
var anyDue = `SELECT EXISTS (SELECT 1 FROM webhook_deliveries WHERE state = 'pending' AND next_at <= ` + clock.Now + `)`

// LeaseDeliveries implements store.Deliveries.
func (s *Store) LeaseDeliveries(ctx context.Context, r store.LeaseRequest) ([]store.Delivery, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	due, err := query(ctx, s, pgx.RowTo[bool], anyDue)
	if err != nil {
		return nil, fmt.Errorf("look for due deliveries: %w", err)
	}
	if !due[0] {
		return nil, nil
	}
	var leased []store.Delivery
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lease, r.Lease, r.For.Microseconds(), r.PerLane, r.Most); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, statement.Leased(clock), r.Lease)
		if err != nil {
			return err
		}
		leased, err = pgx.CollectRows(rows, scanDelivery)
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

// FinishAttempt implements store.Deliveries.
func (s *Store) FinishAttempt(ctx context.Context, a store.Attempt) (disabledFor string, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := finishDelivery(ctx, tx, a); err != nil {
			return err
		}
		disabledFor, err = judgeEndpoint(ctx, tx, a)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("finish attempt to deliver event %s: %w", a.Delivery.Event.ID, err)
	}
	return disabledFor, nil
}

func finishDelivery(ctx context.Context, tx pgx.Tx, a store.Attempt) error {
	d := a.Delivery
	failed := d.Failed
	if a.State != store.DeliveryDelivered {
		failed++
	}
	var number int64
	err := tx.QueryRow(ctx, statement.FinishDelivery(clock),
		d.Event.ID, d.WebhookID, d.Lease, string(a.State), failed, a.Wait.Microseconds()).Scan(&number)
	if errors.Is(err, pgx.ErrNoRows) {
		return store.ErrLeaseLost
	}
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, statement.InsertAttempt, d.Event.ID, d.WebhookID, number,
		store.CleanTime(a.At), a.Status, store.CleanText(a.Failure), a.Took.Microseconds())
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, statement.TrimAttempts, d.Event.ID, d.WebhookID, number-store.MaxAttempts)
	return err
}

// judgeEndpoint notes what the attempt says of its endpoint, if it went to one.
func judgeEndpoint(ctx context.Context, tx pgx.Tx, a store.Attempt) (disabledFor string, err error) {
	id := a.Delivery.WebhookID
	if id == "" {
		return "", nil
	}
	if a.State == store.DeliveryDelivered {
		_, err := tx.Exec(ctx, statement.EndpointWell, id)
		return "", err
	}
	err = tx.QueryRow(ctx, statement.EndpointFailed(clock),
		id, a.Pause.Microseconds(), a.Gone, a.DisableAfter.Microseconds()).Scan(&disabledFor)
	already := errors.Is(err, pgx.ErrNoRows) // by another attempt; this delivery is not to wait for it either
	if err != nil && !already || err == nil && disabledFor == "" {
		return "", err
	}
	_, err = tx.Exec(ctx, statement.GiveUpDeliveries(clock), id)
	return disabledFor, err
}

// Deliveries implements store.Deliveries.
func (s *Store) Deliveries(ctx context.Context, f store.DeliveryFilter) ([]store.DeliveryReport, error) {
	deliveries, attempts, args := statement.SelectDeliveries(f)
	reports, err := query(ctx, s, scanReport, deliveries, args...)
	if err != nil {
		return nil, fmt.Errorf("list deliveries: %w", err)
	}
	log, err := query(ctx, s, scanAttempt, attempts, args...)
	if err != nil {
		return nil, fmt.Errorf("list attempts: %w", err)
	}
	return statement.WithAttempts(reports, log), nil
}

// PruneEvents implements store.Deliveries.
func (s *Store) PruneEvents(ctx context.Context, keep time.Duration, most int) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	for _, table := range statement.SecretTables {
		if _, err := s.pool.Exec(ctx, statement.ForgetSecrets(table, clock)); err != nil {
			return 0, fmt.Errorf("forget old secrets: %w", err)
		}
	}
	tag, err := s.pool.Exec(ctx, statement.PruneEvents(clock), -keep.Microseconds(), most)
	if err != nil {
		return 0, fmt.Errorf("prune events: %w", err)
	}
	return int(tag.RowsAffected()), nil
}

func scanDelivery(row pgx.CollectableRow) (store.Delivery, error) {
	var (
		d              store.Delivery
		secret, before string
	)
	e := &d.Event
	err := row.Scan(&e.ID, &d.WebhookID, &d.Failed, &e.Tenant, &e.Type, &e.ObjectID, &e.Target, &e.CreatedAt, &d.URL, &secret, &before)
	if err != nil {
		return store.Delivery{}, err
	}
	e.CreatedAt = e.CreatedAt.UTC()
	d.Secrets = statement.Secrets(secret, before)
	return d, nil
}

func scanReport(row pgx.CollectableRow) (store.DeliveryReport, error) {
	var (
		r     store.DeliveryReport
		ended *time.Time
	)
	err := row.Scan(&r.EventID, &r.Type, &r.ObjectID, &r.Tenant, &r.WebhookID, &r.State, &r.Attempts, &r.CreatedAt, &r.NextAt, &ended)
	if err != nil {
		return store.DeliveryReport{}, err
	}
	r.CreatedAt, r.NextAt, r.EndedAt = r.CreatedAt.UTC(), r.NextAt.UTC(), timeOrZero(ended)
	return r, nil
}

func scanAttempt(row pgx.CollectableRow) (statement.LoggedAttempt, error) {
	var (
		a    statement.LoggedAttempt
		took int64
	)
	if err := row.Scan(&a.EventID, &a.WebhookID, &a.Number, &a.At, &a.Status, &a.Failure, &took); err != nil {
		return statement.LoggedAttempt{}, err
	}
	a.At, a.Took = a.At.UTC(), time.Duration(took)*time.Microsecond
	return a, nil
}
