//go:build unix

package sqlite

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whoever waits for the file is known to the others, and to nobody of another file.
func TestWritersKnowWhoWaits(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sluice.db")
	a, b, elsewhere := newTurn(path), newTurn(path), newTurn(filepath.Join(t.TempDir(), "sluice.db"))
	require.False(t, a.othersWait())
	require.True(t, a.wait())
	require.True(t, b.wait(), "two may wait")
	require.True(t, b.wait(), "and two of one process")
	a.waitNoMore()
	require.True(t, a.othersWait())
	require.False(t, b.othersWait(), "it is its own wait")
	require.False(t, elsewhere.othersWait())
	b.waitNoMore()
	require.True(t, a.othersWait(), "the other one of it still waits")
	b.waitNoMore()
	require.False(t, a.othersWait())
	for _, each := range []*turn{a, b, elsewhere} {
		require.NoError(t, each.close())
	}
	nowhere := newTurn(filepath.Join(path, "no", "folder"))
	require.False(t, nowhere.wait())
	require.False(t, nowhere.othersWait())
	require.NoError(t, nowhere.close())
}
