package testkit

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// scripted returns a command that counts its runs in a file and then does as told.
func scripted(t *testing.T, script string) (args []string, runs func() int) {
	t.Helper()
	count := filepath.Join(t.TempDir(), "count")
	read := func() int {
		written, err := os.ReadFile(count)
		require.NoError(t, err)
		return len(written)
	}
	return []string{"/bin/sh", "-c", `printf . >>"$0"; ` + script, count}, read
}

func TestInstallWaitsForALock(t *testing.T) {
	t.Parallel()
	args, runs := scripted(t, `[ "$(wc -c <"$0")" -eq 3 ] || { echo "E: Could not get lock /x" >&2; exit 100; }`)
	require.NoError(t, runInstall(t.Context(), args, time.Minute, time.Millisecond))
	require.Equal(t, 3, runs())
}

func TestInstallDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	args, runs := scripted(t, `echo "E: Could not get lock /x" >&2; exit 100`)
	require.ErrorContains(t, runInstall(t.Context(), args, 0, time.Minute), "Could not get lock /x")
	require.Equal(t, 1, runs())
}

func TestInstallThatCannotBeFailsAtOnce(t *testing.T) {
	t.Parallel()
	args, runs := scripted(t, `echo "E: Unable to locate package" >&2; exit 100`)
	require.ErrorContains(t, runInstall(t.Context(), args, time.Minute, time.Minute), "Unable to locate package")
	require.Equal(t, 1, runs())
}
