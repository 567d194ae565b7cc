package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/store"
)

func TestKeyActive(t *testing.T) {
	t.Parallel()
	now := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	cases := map[string]struct {
		key  store.Key
		want bool
	}{
		"for ever":              {store.Key{}, true},
		"expires later":         {store.Key{ExpiresAt: now.Add(1)}, true},
		"expires now":           {store.Key{ExpiresAt: now}, false},
		"expired":               {store.Key{ExpiresAt: now.Add(-1)}, false},
		"revoked":               {store.Key{RevokedAt: now.Add(-1)}, false},
		"revoked, clock behind": {store.Key{RevokedAt: now.Add(time.Hour)}, false},
		"revoked, not expired":  {store.Key{RevokedAt: now, ExpiresAt: now.Add(1)}, false},
	}
	for name, c := range cases {
		require.Equal(t, c.want, c.key.Active(now), name)
	}
}

func TestKeyValidateNamesTheField(t *testing.T) {
	t.Parallel()
	good := store.Key{ID: "id", Name: "name", Tenant: "acme", Models: []string{"*", "gpt-[45]?", `\[`}}
	require.NoError(t, good.Validate())
	cases := map[string]func(*store.Key){
		"key id is empty":                     func(k *store.Key) { k.ID = "" },
		"key name is empty":                   func(k *store.Key) { k.Name = "" },
		"key tenant has a control character":  func(k *store.Key) { k.Tenant = "a\nb" },
		"key display is not UTF-8":            func(k *store.Key) { k.Display = "\xc3" },
		"key name is longer than 512 bytes":   func(k *store.Key) { k.Name = strings.Repeat("n", 513) },
		"key model 2 has a control character": func(k *store.Key) { k.Models = []string{"a", "\x00"} },
		"key models are 1001, more than 1000": func(k *store.Key) { k.Models = make([]string, 1001) },
		"key tenant is empty":                 func(k *store.Key) { k.Tenant = "" },
		"key model 2 is neither":              func(k *store.Key) { k.Models = []string{"a", "gpt-[4"} },
		"key model 1 is neither":              func(k *store.Key) { k.Models = []string{""} },
	}
	for want, change := range cases {
		key := good
		change(&key)
		err := key.Validate()
		require.ErrorIs(t, err, store.ErrInvalid)
		require.ErrorContains(t, err, want)
	}
}

type coded string

func (c coded) Error() string    { return "said by a server" }
func (c coded) SQLState() string { return string(c) }

func TestWhatADatabaseAnswersIsNotThatItIsOutOfReach(t *testing.T) {
	t.Parallel()
	_, refused := (&net.Dialer{}).DialContext(t.Context(), "tcp", "127.0.0.1:1")
	for _, gone := range []error{refused, context.DeadlineExceeded, io.ErrUnexpectedEOF, coded("57P01"), coded("53300"), coded("08006"), coded("28P01")} {
		require.True(t, store.Unreachable(fmt.Errorf("list keys: %w", gone)), "%v", gone)
	}
	for _, answer := range []error{nil, store.ErrNotFound, store.ErrConflict, store.ErrInvalid, coded("23505"), coded("42P01"), errors.New("wrong"), context.Canceled} {
		require.False(t, store.Unreachable(answer), "%v", answer)
	}
}

func TestEveryFaultOfAKeyIsFound(t *testing.T) {
	t.Parallel()
	k := store.Key{Name: "a\x00", Tenant: "acme", Models: []string{"[", "gpt-4o", ""}}
	var found []string
	for _, f := range k.Faults() {
		require.ErrorIs(t, f, store.ErrInvalid)
		found = append(found, f.Error())
	}
	require.Len(t, found, 4)
	for i, want := range []string{"key id is empty", "key name has a control", "key model 1 is", "key model 3 is"} {
		require.Contains(t, found[i], want)
	}
}

func TestCleanText(t *testing.T) {
	t.Parallel()
	cases := map[string]struct{ in, want string }{
		"as it is":            {"gpt-4o ü", "gpt-4o ü"},
		"as long as may be":   {strings.Repeat("a", 512), strings.Repeat("a", 512)},
		"one byte too long":   {strings.Repeat("a", 513), strings.Repeat("a", 512)},
		"never half a letter": {strings.Repeat("a", 511) + "é", strings.Repeat("a", 511)},
		"NUL":                 {"a\x00b\x00", "ab"},
		"not UTF-8":           {"a\xff\xfeb", "a\uFFFDb"},
	}
	for name, c := range cases {
		require.Equal(t, c.want, store.CleanText(c.in), name)
	}
}

func FuzzCleanText(f *testing.F) {
	f.Add("")
	f.Add("nul\x00")
	f.Add(strings.Repeat("é", 300) + "\xff")
	f.Add(strings.Repeat("\xf0\x9f\x99", 200))
	f.Fuzz(func(t *testing.T, s string) {
		clean := store.CleanText(s)
		require.True(t, utf8.ValidString(clean))
		require.NotContains(t, clean, "\x00")
		require.LessOrEqual(t, len(clean), store.MaxTextBytes)
		require.Equal(t, clean, store.CleanText(clean), "clean text stays as it is")
		if len(s) <= store.MaxTextBytes && utf8.ValidString(s) && !strings.Contains(s, "\x00") {
			require.Equal(t, s, clean)
		}
	})
}

func TestCleanBatchOrdersByJobAndKeepsTheFirst(t *testing.T) {
	t.Parallel()
	tries := []inference.Try{{Provider: "p\x00", Took: 1}}
	given := []inference.Record{{JobID: "b", Attempts: 1}, {JobID: "a", Tries: tries}, {JobID: "b", Attempts: 2}}
	batch, err := store.CleanBatch(given)
	require.NoError(t, err)
	require.Len(t, batch, 2)
	require.Equal(t, "a", batch[0].JobID)
	require.Equal(t, 1, batch[1].Attempts)
	require.Equal(t, []inference.Try{{Provider: "p"}}, batch[0].Tries)
	require.Equal(t, "b", given[0].JobID, "the caller's slice stays as it was")
	require.Equal(t, "p\x00", tries[0].Provider, "and so do the tries in it")

	_, err = store.CleanBatch([]inference.Record{{JobID: "\x00"}})
	require.ErrorIs(t, err, store.ErrInvalid)
	_, err = store.CleanBatch(make([]inference.Record, store.MaxBatch+1))
	require.ErrorIs(t, err, store.ErrInvalid)
}

func TestCursor(t *testing.T) {
	t.Parallel()
	require.True(t, store.Cursor{}.IsZero())
	require.False(t, store.CursorOf(inference.Record{JobID: "a"}).IsZero())
}
