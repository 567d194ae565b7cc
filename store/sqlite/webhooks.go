package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"sluice/internal/webhook"
	"sluice/store"
	"sluice/store/internal/statement"
)

// clockAt is this machine's clock, given to a statement as the parameter of that name:
// all processes that share the file run on this machine.
func clockAt(param string) statement.Clock {
	return statement.Clock{Now: param, Plus: func(at, micros string) string { return "(" + at + " + " + micros + ")" }}
}

// CreateWebhook implements store.Webhooks. The transaction holds the file's write lock
// from its beginning, so nothing comes between the looks and the insertion.
func (s *Store) CreateWebhook(ctx context.Context, w store.Webhook, secret webhook.Secret, most int) (store.Webhook, error) {
	if err := w.Validate(); err != nil {
		return store.Webhook{}, err
	}
	if err := store.CheckSecret(w.ID, secret); err != nil {
		return store.Webhook{}, err
	}
	var made []store.Webhook
	err := s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var count int
		var taken bool
		err := tx.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM webhooks WHERE tenant = ?),
			EXISTS (SELECT 1 FROM webhooks WHERE id = ?)`, w.Tenant, w.ID).Scan(&count, &taken)
		switch {
		case err != nil:
			return err
		case taken:
			return store.ErrDuplicate
		case count >= most:
			return fmt.Errorf("tenant has %d: %w", count, store.ErrTooMany)
		}
		made, err = queryTx(ctx, tx, scanWebhook, `INSERT INTO webhooks (id, tenant, url, events, secret, created_at)
			VALUES (?, ?, ?, ?, ?, ?) RETURNING `+statement.WebhookColumns,
			w.ID, w.Tenant, w.URL, store.JoinTypes(w.Events), secret.Reveal(), micros(time.Now()))
		return err
	})
	if err != nil {
		return store.Webhook{}, fmt.Errorf("create webhook %s: %w", w.ID, err)
	}
	return made[0], nil
}

// ListWebhooks implements store.Webhooks.
func (s *Store) ListWebhooks(ctx context.Context, tenant string) ([]store.Webhook, error) {
	hooks, err := query(ctx, s.reader, scanWebhook, statement.ListWebhooks, store.CleanText(tenant))
	if err != nil {
		return nil, fmt.Errorf("list webhooks: %w", err)
	}
	return hooks, nil
}

// Webhook implements store.Webhooks.
func (s *Store) Webhook(ctx context.Context, id string) (store.Webhook, error) {
	return oneWebhook(ctx, s.reader, "look up", id, statement.GetWebhook)
}

// EnableWebhook implements store.Webhooks.
func (s *Store) EnableWebhook(ctx context.Context, id string) (store.Webhook, error) {
	return oneWebhook(ctx, s.writer, "enable", id, statement.EnableWebhook)
}

// RotateWebhook implements store.Webhooks.
func (s *Store) RotateWebhook(ctx context.Context, id string, secret webhook.Secret, overlap time.Duration) (store.Webhook, error) {
	if err := store.CheckSecret("webhook", secret); err != nil {
		return store.Webhook{}, err
	}
	return oneWebhook(ctx, s.writer, "rotate", id, statement.RotateWebhook(clockAt("$4")),
		secret.Reveal(), overlap.Microseconds(), micros(time.Now()))
}

func oneWebhook(ctx context.Context, db *sql.DB, verb, id, text string, args ...any) (store.Webhook, error) {
	id = store.CleanText(id)
	hooks, err := query(ctx, db, scanWebhook, text, append([]any{id}, args...)...)
	if err == nil && len(hooks) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.Webhook{}, fmt.Errorf("%s webhook %q: %w", verb, id, err)
	}
	return hooks[0], nil
}

// DeleteWebhook implements store.Webhooks.
func (s *Store) DeleteWebhook(ctx context.Context, id string) error {
	id = store.CleanText(id)
	err := s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		n, err := execTx(ctx, tx, statement.DeleteWebhook, id)
		if err != nil {
			return err
		}
		if n == 0 {
			return store.ErrNotFound
		}
		_, err = execTx(ctx, tx, statement.DeleteDeliveries, id)
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
	scan := func(rows *sql.Rows) (secret webhook.Secret, err error) { return secret, rows.Scan(&secret) }
	secrets, err := query(ctx, s.writer, scan, statement.KeepTenantSigner, tenant, fresh.Reveal())
	if err != nil {
		return "", fmt.Errorf("keep secret of tenant %s: %w", tenant, err)
	}
	return secrets[0], nil
}

// RotateTenantSecret implements store.Webhooks.
func (s *Store) RotateTenantSecret(ctx context.Context, tenant string, secret webhook.Secret, overlap time.Duration) error {
	if err := store.CheckSecret(tenant, secret); err != nil {
		return err
	}
	_, err := s.exec(ctx, statement.RotateTenantSecret(clockAt("$4")),
		tenant, secret.Reveal(), overlap.Microseconds(), micros(time.Now()))
	if err != nil {
		return fmt.Errorf("rotate secret of tenant %s: %w", tenant, err)
	}
	return nil
}

func scanWebhook(rows *sql.Rows) (store.Webhook, error) {
	var (
		w                 store.Webhook
		events            string
		created           int64
		failing, disabled sql.NullInt64
	)
	err := rows.Scan(&w.ID, &w.Tenant, &w.URL, &events, &created, &failing, &disabled, &w.DisabledFor)
	if err != nil {
		return store.Webhook{}, err
	}
	w.Events, w.CreatedAt = store.SplitTypes(events), fromMicros(created)
	w.FailingSince, w.DisabledAt = fromNullMicros(failing), fromNullMicros(disabled)
	return w, nil
}
