package testkit_test

import (
	"bufio"
	"context"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
)

const (
	// childVariable makes this test program, run again, the process that dies.
	childVariable = "SLUICE_TESTKIT_CHILD"

	waitTime = 20 * time.Second
	waitPoll = 20 * time.Millisecond
)

func TestPostgresGivesEachTestItsOwnDatabase(t *testing.T) {
	t.Parallel()
	first, second := connect(t, testkit.Postgres(t)), connect(t, testkit.Postgres(t))
	_, err := first.Exec(t.Context(), "CREATE TABLE mine (id int)")
	require.NoError(t, err)
	_, err = second.Exec(t.Context(), "CREATE TABLE mine (id int)")
	require.NoError(t, err, "the second database is empty")
}

//nolint:tparallel // the subtest has to end before its database is looked for
func TestPostgresDropsTheDatabaseWhenTheTestEnds(t *testing.T) {
	t.Parallel()
	var address string
	require.True(t, t.Run("user", func(user *testing.T) {
		address = testkit.Postgres(user)
		connect(t, address) // still open when the user ends
	}))
	_, err := pgx.Connect(t.Context(), address)
	require.ErrorContains(t, err, "does not exist")
}

func TestPostgresServerStopsAndStartsWithItsData(t *testing.T) {
	t.Parallel()
	server := testkit.PostgresServer(t)
	address := server.URL()
	conn := connect(t, address)
	_, err := conn.Exec(t.Context(), "CREATE TABLE kept AS SELECT 42 AS n")
	require.NoError(t, err)

	server.Stop()
	require.Error(t, conn.Ping(t.Context()), "an open connection is cut")
	_, err = pgx.Connect(t.Context(), address)
	require.Error(t, err, "a new one is refused")

	server.Start()
	require.Equal(t, address, server.URL())
	var n int
	require.NoError(t, connect(t, address).QueryRow(t.Context(), "SELECT n FROM kept").Scan(&n))
	require.Equal(t, 42, n)
}

// TestPostgresEndsWithItsProcess kills a process that uses both kinds of server, in
// the way that leaves it no time for anything.
func TestPostgresEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPostgresChild$", "-test.v")
	child.Env = append(os.Environ(), childVariable+"=1", "SLUICE_TEST_DATABASE_URL=")
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	var addresses, said []string
	for lines := bufio.NewScanner(out); len(addresses) < 2 && lines.Scan(); {
		said = append(said, lines.Text())
		if address, ok := strings.CutPrefix(lines.Text(), "server "); ok {
			addresses = append(addresses, address)
		}
	}
	require.Len(t, addresses, 2, "the child started its servers; it said: %q", said)
	folders := make([]string, len(addresses))
	for i, address := range addresses {
		conn, err := pgx.Connect(t.Context(), address)
		require.NoError(t, err)
		require.NoError(t, conn.QueryRow(t.Context(), "SHOW data_directory").Scan(&folders[i]))
		require.NoError(t, conn.Close(t.Context()))
		require.DirExists(t, folders[i])
	}

	require.NoError(t, child.Process.Kill())
	require.Error(t, child.Wait())
	for i, address := range addresses {
		u, err := url.Parse(address)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			conn, err := net.Dial("tcp", u.Host)
			if err == nil {
				_ = conn.Close()
			}
			_, statErr := os.Stat(folders[i])
			return err != nil && os.IsNotExist(statErr)
		}, waitTime, waitPoll, "server %s is gone with its files", address)
	}
}

// TestPostgresChild is the process that dies; in an ordinary run it does nothing.
func TestPostgresChild(t *testing.T) {
	t.Parallel()
	if os.Getenv(childVariable) == "" {
		return
	}
	for _, address := range []string{testkit.Postgres(t), testkit.PostgresServer(t).URL()} {
		_, err := os.Stdout.WriteString("server " + address + "\n")
		require.NoError(t, err)
	}
	<-t.Context().Done() // until killed
}

func connect(t *testing.T, address string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), waitTime)
		defer cancel()
		_ = conn.Close(ctx) // the server may be gone by then
	})
	return conn
}
