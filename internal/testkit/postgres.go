package testkit

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// databaseURLVariable names a Postgres server to test against. Its user must be
// allowed to create databases.
const databaseURLVariable = "SLUICE_TEST_DATABASE_URL"

// setupTimeout bounds the making and the dropping of one database.
const setupTimeout = time.Minute

// shared is the one server that the tests of this process use together. It is the
// package's only state, because a server for each test would cost a second each;
// Main stops it, and it stops by itself when the process ends in any other way.
var shared struct {
	sync.Mutex
	url    string // of a database from which others can be made; empty before the first use
	server *postgresServer
	err    error
}

// Postgres returns the URL of a new, empty database, which is dropped when the
// test ends. The server is the one that SLUICE_TEST_DATABASE_URL names, or else a
// private one, started from the programs found on this machine, or else from
// programs that it installs. When no server can be had the test fails: it is never
// skipped.
func Postgres(t testing.TB) string {
	t.Helper()
	admin, err := sharedURL()
	if err != nil {
		t.Fatalf("no Postgres for this test: %v", err)
	}
	name := "sluice_test_" + rand.Text()
	if err := execOn(admin, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()+
		" TEMPLATE template0 ENCODING 'UTF8'"); err != nil {
		t.Fatalf("no Postgres for this test: create database: %v", err)
	}
	t.Cleanup(func() {
		if err := execOn(admin, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)"); err != nil {
			t.Errorf("drop test database: %v", err)
		}
	})
	return withDatabase(admin, name)
}

// PostgresProcess is a Postgres server of one test's own.
type PostgresProcess struct {
	t      testing.TB
	server *postgresServer
}

// PostgresServer starts a private Postgres server that the test may stop and start
// again. It ends with the test. SLUICE_TEST_DATABASE_URL does not matter here.
func PostgresServer(t testing.TB) *PostgresProcess {
	t.Helper()
	server, err := newPostgresServer()
	if err != nil {
		t.Fatalf("no Postgres for this test: %v", err)
	}
	t.Cleanup(func() {
		if err := server.remove(); err != nil {
			t.Errorf("remove Postgres server: %v", err)
		}
	})
	if err := execOn(server.url("postgres"), "CREATE DATABASE sluice"); err != nil {
		t.Fatalf("no Postgres for this test: create database: %v", err)
	}
	return &PostgresProcess{t: t, server: server}
}

// URL returns the address of a database on the server. It stays the same when the
// server is stopped and started.
func (p *PostgresProcess) URL() string { return p.server.url("sluice") }

// Stop stops the server as a restart would: connections are cut, new ones refused,
// committed data kept. It returns when the server is gone.
func (p *PostgresProcess) Stop() {
	p.t.Helper()
	if err := p.server.stop(); err != nil {
		p.t.Fatalf("stop Postgres server: %v", err)
	}
}

// Start starts a stopped server and returns when it answers.
func (p *PostgresProcess) Start() {
	p.t.Helper()
	if err := p.server.start(); err != nil {
		p.t.Fatalf("start Postgres server: %v", err)
	}
}

// sharedURL returns the address of the shared server, and starts it if need be. A
// failure is kept: it would only be the same for every other test.
func sharedURL() (string, error) {
	shared.Lock()
	defer shared.Unlock()
	if shared.url != "" || shared.err != nil {
		return shared.url, shared.err
	}
	if given := os.Getenv(databaseURLVariable); given != "" {
		if u, err := url.Parse(given); err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
			shared.err = fmt.Errorf("%s is not a postgres:// URL", databaseURLVariable)
			return "", shared.err
		}
		shared.url = given
		return shared.url, nil
	}
	shared.server, shared.err = newPostgresServer()
	if shared.err == nil {
		shared.url = shared.server.url("postgres")
	}
	return shared.url, shared.err
}

// stopShared stops the shared server, if one was started.
func stopShared() error {
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil {
		return nil
	}
	server := shared.server
	shared.server, shared.url = nil, ""
	return server.remove()
}

func execOn(url, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	return err
}

// withDatabase returns a server's URL with another database in it.
func withDatabase(server, database string) string {
	u, err := url.Parse(server)
	if err != nil {
		return server // cannot be: the URL was parsed before
	}
	u.Path = "/" + database
	return u.String()
}
