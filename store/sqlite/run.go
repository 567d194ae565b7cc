package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// inTx runs do in a transaction that holds the file's write lock from its beginning, and
// commits it if do returns nil.
func (s *Store) inTx(ctx context.Context, do func(context.Context, *sql.Tx) error) error {
	return s.inTxWithin(ctx, timeout, do)
}

func (s *Store) inTxWithin(
	ctx context.Context, timeout time.Duration, do func(context.Context, *sql.Tx) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var tx *sql.Tx
	err := whenFree(ctx, func() (err error) {
		tx, err = s.writer.BeginTx(ctx, nil)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after the commit
	if err := do(ctx, tx); err != nil {
		return err
	}
	return tx.Commit()
}

// exec runs a statement and returns how many rows it changed.
func (s *Store) exec(ctx context.Context, text string, args ...any) (int64, error) {
	return s.execWithin(ctx, timeout, text, args...)
}

func (s *Store) execWithin(ctx context.Context, timeout time.Duration, text string, args ...any) (changed int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = whenFree(ctx, func() error {
		result, err := s.writer.ExecContext(ctx, text, args...)
		if err != nil {
			return err
		}
		changed, err = result.RowsAffected()
		return err
	})
	return changed, err
}

// query runs a statement that returns rows on db and collects them.
func query[T any](
	ctx context.Context, db *sql.DB, scan func(*sql.Rows) (T, error), text string, args ...any,
) (values []T, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = whenFree(ctx, func() error {
		rows, err := db.QueryContext(ctx, text, args...)
		if err != nil {
			return err
		}
		values, err = collect(rows, scan)
		return err
	})
	return values, err
}

// queryTx runs a statement that returns rows and collects them.
func queryTx[T any](
	ctx context.Context, tx *sql.Tx, scan func(*sql.Rows) (T, error), text string, args ...any,
) ([]T, error) {
	rows, err := tx.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	return collect(rows, scan)
}

// execTx runs a statement and returns how many rows it changed.
func execTx(ctx context.Context, tx *sql.Tx, text string, args ...any) (int, error) {
	result, err := tx.ExecContext(ctx, text, args...)
	if err != nil {
		return 0, err
	}
	n, err := result.RowsAffected()
	return int(n), err
}

// collect reads rows to their end and closes them.
func collect[T any](rows *sql.Rows, scan func(*sql.Rows) (T, error)) (values []T, err error) {
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		value, err := scan(rows)
		if err != nil {
			return nil, err
		}
		values = append(values, value)
	}
	return values, rows.Err()
}

// whenFree does what needs the file's write lock, and does it again for as long as another
// process has it, busyTimeout at most. SQLite's own wait looks for the lock at growing
// intervals, up to a tenth of a second, so that beside a process with one transaction after
// another it may never find it free.
func whenFree(ctx context.Context, do func() error) error {
	for began := time.Now(); ; {
		err := do()
		if !busy(err) || time.Since(began) > busyTimeout {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(busyAsk):
		}
	}
}

// busyAsk is about how long the file is free between two transactions of another process.
const busyAsk = 500 * time.Microsecond

const codeBusy = 5 // SQLITE_BUSY; its extended codes have more in their upper bytes

func busy(err error) bool {
	said, ok := errors.AsType[interface {
		error
		Code() int
	}](err)
	return ok && said.Code()&0xff == codeBusy
}
