package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"sluice/internal/webhook"
	"sluice/store"
	"sluice/store/internal/statement"
)

// clock is the database's own. The moment is that of the statement, not of its
// transaction, and one statement knows one moment, so that an index serves for it.
var clock = statement.Clock{
	Now: "statement_timestamp()",
	Plus: func(at, micros string) string {
		return "(" + at + " + " + micros + "::bigint * interval '1 microsecond')"
	},
}

// CreateWebhook implements store.Webhooks. Those that make endpoints for one tenant at
// the same time do it one after the other, so that none is counted too late.
func (s *Store) CreateWebhook(ctx context.Context, w store.Webhook, secret webhook.Secret, most int) (store.Webhook, error) {
	if err := w.Validate(); err != nil {
		return store.Webhook{}, err
	}
	if err := store.CheckSecret(w.ID, secret); err != nil {
		return store.Webhook{}, err
	}
	var made store.Webhook
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended('webhooks ' || $1, 0))", w.Tenant); err != nil {
			return err
		}
		var count int
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM webhooks WHERE tenant = $1", w.Tenant).Scan(&count); err != nil {
			return err
		}
		if count >= most {
			return fmt.Errorf("tenant has %d: %w", count, store.ErrTooMany)
		}
		rows, err := tx.Query(ctx, `INSERT INTO webhooks (id, tenant, url, events, secret) VALUES ($1, $2, $3, $4, $5)
			RETURNING `+statement.WebhookColumns, w.ID, w.Tenant, w.URL, store.JoinTypes(w.Events), secret.Reveal())
		if err != nil {
			return err
		}
		made, err = pgx.CollectExactlyOneRow(rows, scanWebhook)
		if hasCode(err, codeUniqueViolation) {
			return store.ErrDuplicate
		}
		return err
	})
	if err != nil {
		return store.Webhook{}, fmt.Errorf("create webhook %s: %w", w.ID, err)
	}
	return made, nil
}

// ListWebhooks implements store.Webhooks.
func (s *Store) ListWebhooks(ctx context.Context, tenant string) ([]store.Webhook, error) {
	hooks, err := query(ctx, s, scanWebhook, statement.ListWebhooks, store.CleanText(tenant))
	if err != nil {
		return nil, fmt.Errorf("list webhooks: %w", err)
	}
	return hooks, nil
}

// Webhook implements store.Webhooks.
func (s *Store) Webhook(ctx context.Context, id string) (store.Webhook, error) {
	return s.oneWebhook(ctx, "look up", id, statement.GetWebhook)
}

// EnableWebhook implements store.Webhooks.
func (s *Store) EnableWebhook(ctx context.Context, id string) (store.Webhook, error) {
	return s.oneWebhook(ctx, "enable", id, statement.EnableWebhook)
}

// RotateWebhook implements store.Webhooks.
func (s *Store) RotateWebhook(ctx context.Context, id string, secret webhook.Secret, overlap time.Duration) (store.Webhook, error) {
	if err := store.CheckSecret("webhook", secret); err != nil {
		return store.Webhook{}, err
	}
	return s.oneWebhook(ctx, "rotate", id, statement.RotateWebhook(clock), secret.Reveal(), overlap.Microseconds())
}

func (s *Store) oneWebhook(ctx context.Context, verb, id, sql string, args ...any) (store.Webhook, error) {
	id = store.CleanText(id)
	hooks, err := query(ctx, s, scanWebhook, sql, append([]any{id}, args...)...)
	if err == nil && len(hooks) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.Webhook{}, fmt.Errorf("%s webhook %q: %w", verb, id, err)
	}
	return hooks[0], nil
}

// DeleteWebhook implements store.Webhooks. It waits for events that are being written.
func (s *Store) DeleteWebhook(ctx context.Context, id string) error {
	id = store.CleanText(id)
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		// The deliveries first, as FinishAttempt does, so that neither waits for the
		// other; and again for those of events that were being written meanwhile.
		if _, err := tx.Exec(ctx, statement.DeleteDeliveries, id); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, statement.DeleteWebhook, id)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return store.ErrNotFound
		}
		_, err = tx.Exec(ctx, statement.DeleteDeliveries, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("delete webhook %q: %w", id, err)
	}
	return nil
}

// TenantSecret implements store.Webhooks.
func (s *Store) TenantSecret(ctx context.Context, tenant string, fresh webhook.Secret) (webhook.Secret, error) {
	if err := store.CheckSecret(tenant, fresh); err != nil {
		return "", err
	}
	secrets, err := query(ctx, s, pgx.RowTo[string], statement.KeepTenantSigner, tenant, fresh.Reveal())
	if err != nil {
		return "", fmt.Errorf("keep secret of tenant %s: %w", tenant, err)
	}
	return webhook.Secret(secrets[0]), nil
}

// RotateTenantSecret implements store.Webhooks.
func (s *Store) RotateTenantSecret(ctx context.Context, tenant string, secret webhook.Secret, overlap time.Duration) error {
	if err := store.CheckSecret(tenant, secret); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	_, err := s.pool.Exec(ctx, statement.RotateTenantSecret(clock), tenant, secret.Reveal(), overlap.Microseconds())
	if err != nil {
		return fmt.Errorf("rotate secret of tenant %s: %w", tenant, err)
	}
	return nil
}

func scanWebhook(row pgx.CollectableRow) (store.Webhook, error) {
	var (
		w                 store.Webhook
		events            string
		failing, disabled *time.Time
	)
	err := row.Scan(&w.ID, &w.Tenant, &w.URL, &events, &w.CreatedAt, &failing, &disabled, &w.DisabledFor)
	if err != nil {
		return store.Webhook{}, err
	}
	w.Events, w.CreatedAt = store.SplitTypes(events), w.CreatedAt.UTC()
	w.FailingSince, w.DisabledAt = timeOrZero(failing), timeOrZero(disabled)
	return w, nil
}
