package storetest

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

var schemaTests = map[string]func(*testing.T, Open){
	"a new database lacks migrations until it is migrated": func(t *testing.T, open Open) {
		s := open()
		require.NoError(t, s.Ping(t.Context()))
		for range 2 { // to ask changes nothing
			pending, err := s.Pending(t.Context())
			require.NoError(t, err)
			require.True(t, pending)
		}
		_, err := s.ListKeys(t.Context())
		require.Error(t, err, "there is no schema yet")

		for range 2 { // a second time has nothing to do
			require.NoError(t, s.Migrate(t.Context()))
			pending, err := s.Pending(t.Context())
			require.NoError(t, err)
			require.False(t, pending)
		}
	},

	"stores that start together all find the schema": MigrateTogether,

	"what one store wrote another one reads": func(t *testing.T, open Open) {
		require.NoError(t, migrated(t, open).CreateKey(t.Context(), newKey("dev"), by))
		key, err := open().KeyByHash(t.Context(), newKey("dev").Hash)
		require.NoError(t, err)
		require.Equal(t, "dev", key.Name)
	},

	"a call whose context has ended fails": func(t *testing.T, open Open) {
		s := migrated(t, open)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.Error(t, s.Ping(ctx))
		require.Error(t, s.Migrate(ctx))
		_, err := s.Pending(ctx)
		require.ErrorIs(t, err, context.Canceled)
		_, err = s.ListKeys(ctx)
		require.ErrorIs(t, err, context.Canceled)
		_, err = s.KeyByHash(ctx, newKey("x").Hash)
		require.ErrorIs(t, err, context.Canceled)
		_, _, err = s.KeysChangedSince(ctx, newRecord("x").CreatedAt)
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, s.CreateKey(ctx, newKey("x"), by), context.Canceled)
	},
}

// MigrateTogether has several stores bring one database up to date at one time, as
// processes do that start together, and requires all of them to find it so. It is
// exported for tests that put a database back to an older schema first, which is
// not the same race as the first one of a new database.
func MigrateTogether(t *testing.T, open Open) {
	const processes = 6
	group, ctx := errgroup.WithContext(t.Context())
	start := make(chan struct{})
	for range processes {
		s := open()
		require.NoError(t, s.Ping(t.Context())) // connected before the race begins
		group.Go(func() error {
			<-start
			return s.Migrate(ctx)
		})
	}
	close(start)
	require.NoError(t, group.Wait())
	pending, err := open().Pending(t.Context())
	require.NoError(t, err)
	require.False(t, pending)
}
