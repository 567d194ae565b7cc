package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"
)

// prepared are a database's statements that are compiled once for each connection, because
// they run as often as requests come: to compile one costs more than to run it.
type prepared struct {
	db *sql.DB

	mu         sync.Mutex
	statements map[string]*sql.Stmt // by their text
}

func newPrepared(db *sql.DB) *prepared {
	return &prepared{db: db, statements: make(map[string]*sql.Stmt)}
}

// get returns the statement of this text, which must be a constant.
func (p *prepared) get(ctx context.Context, text string) (*sql.Stmt, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known, ok := p.statements[text]; ok {
		return known, nil
	}
	made, err := p.db.PrepareContext(ctx, text) //nolint:sqlclosecheck // close closes it
	if err != nil {
		return nil, fmt.Errorf("prepare statement: %w", err)
	}
	p.statements[text] = made
	return made, nil
}

// inTxWith runs do in a transaction, with a statement that is compiled before: there is one
// connection that writes, and the transaction holds it.
func (s *Store) inTxWith(
	ctx context.Context, within time.Duration, text string, do func(context.Context, *sql.Stmt) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	stmt, err := s.writes.get(ctx, text)
	if err != nil {
		return err
	}
	return s.inTxWithin(ctx, within, func(ctx context.Context, tx *sql.Tx) error {
		return do(ctx, tx.StmtContext(ctx, stmt))
	})
}

func (p *prepared) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	for _, s := range p.statements {
		err = errors.Join(err, s.Close())
	}
	clear(p.statements)
	return err
}
