package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"go.uber.org/fx"

	"sluice/internal/config"
	"sluice/store"
	"sluice/store/postgres"
	"sluice/store/sqlite"
)

// database is the store of a serving process, and whether it has been of use yet.
type database struct {
	store.Store

	// usable is closed once the database has answered and has the schema that this
	// build needs.
	usable chan struct{}
}

// errSchema says what a person has to do, who alone changes a shared database.
var errSchema = errors.New("the database's schema is not up to date: run 'sluice migrate', with the same configuration")

// newDatabase opens the database and sees to its schema. serve brings the schema up to
// date by itself where the database is its own; a shared one is migrated by hand. A
// shared one that is down is waited for beside the serving, and its schema looked at
// then.
func newDatabase(lc fx.Lifecycle, cfg *config.Config, log *slog.Logger) (*database, error) {
	s, err := openStore(context.Background(), cfg)
	if err != nil {
		return nil, startFailed(err)
	}
	db := &database{Store: s, usable: make(chan struct{})}
	lc.Append(fx.StopHook(db.Close))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if cfg.Store.URL == "" {
		if cfg.Queue.URL != "" {
			log.Warn("store.url is empty: keys and usage stay in this process's own file, while queue.url is shared; a second ingress would know other keys and split the ledger", "file", sqlitePath(cfg))
		}
		close(db.usable)
		return db, startFailed(db.Migrate(ctx))
	}
	switch pending, err := db.Pending(ctx); {
	case refused(err):
		return nil, startFailed(fmt.Errorf("store.url: the database refuses: %w", err))
	case err != nil:
		log.Warn("database is not reachable; serving goes on with what is known without it", "error", err)
		db.watchInBackground(lc, log)
	case pending:
		return nil, startFailed(errSchema)
	default:
		close(db.usable)
	}
	return db, nil
}

func openStore(ctx context.Context, cfg *config.Config) (store.Store, error) {
	if cfg.Store.URL == "" {
		return sqlite.Open(ctx, sqlitePath(cfg))
	}
	return postgres.Open(ctx, string(cfg.Store.URL), postgres.Options{})
}

// refused reports whether the database answered that it will not serve who asks, or
// not this: an error of the configuration or of the database's own set-up, which does
// not pass by itself. The classes are those of the Postgres manual's appendix A:
// invalid authorization, invalid catalog (no such database), access rule violation.
func refused(err error) bool {
	var answer interface {
		error
		SQLState() string
	}
	if !errors.As(err, &answer) {
		return false
	}
	state := answer.SQLState()
	return strings.HasPrefix(state, "28") || strings.HasPrefix(state, "3D") || strings.HasPrefix(state, "42")
}

// databasePoll is the time between two looks whether a database has come back.
const databasePoll = time.Second

func (db *database) watchInBackground(lc fx.Lifecycle, log *slog.Logger) {
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	lc.Append(fx.StartStopHook(
		func() { watching.Go(func() { db.watch(ctx, log) }) },
		func() {
			cancel()
			watching.Wait()
		},
	))
}

// watch waits until the database is usable. That it is down was told at the start;
// what else keeps it from being of use is told when it is found.
func (db *database) watch(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(databasePoll)
	defer tick.Stop()
	for told := ""; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		pending, err := db.Pending(ctx)
		switch {
		case err == nil && !pending:
			log.Info("database is reachable and its schema up to date")
			close(db.usable)
			return
		case err == nil:
			err = errSchema
		case !refused(err):
			continue
		}
		if told != err.Error() {
			told = err.Error()
			log.Error("database is not usable yet", "error", err)
		}
	}
}
