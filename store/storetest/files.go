package storetest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/store"
)

// fileTime is when the files of the tests are made.
var fileTime = time.Date(2030, 5, 6, 7, 8, 9, 123456000, time.UTC)

// newFile returns a file that can be stored.
func newFile(id string) store.File {
	return store.File{
		ID: id, Tenant: "acme", Purpose: "batch", Filename: "lines.jsonl", Bytes: 1 << 40,
		Digest: strings.Repeat("0f", 32), CreatedAt: fileTime,
	}
}

func createFiles(t *testing.T, s store.Store, files ...store.File) {
	t.Helper()
	for _, f := range files {
		require.NoError(t, s.CreateFile(t.Context(), f))
	}
}

// listFiles returns the ids of the page that the filter selects, and whether there are
// more.
func listFiles(t *testing.T, s store.Store, filter store.FileFilter) ([]string, bool) {
	t.Helper()
	files, more, err := s.ListFiles(t.Context(), filter)
	require.NoError(t, err)
	ids := make([]string, len(files))
	for i, f := range files {
		ids[i] = f.ID
	}
	return ids, more
}

var fileTests = map[string]func(*testing.T, Open){
	"a file comes back as it was stored": func(t *testing.T, open Open) {
		s := migrated(t, open)
		f := newFile(store.NewFileID())
		f.Tenant, f.Filename = "北京", `"quoted'; --`+"\n🔑"
		east := time.FixedZone("east", 5*3600)
		f.CreatedAt = time.Date(2031, 1, 2, 3, 4, 5, 678901234, east)
		f.ExpiresAt = f.CreatedAt.Add(time.Hour)
		createFiles(t, s, f)
		got, err := s.File(t.Context(), f.Tenant, f.ID, f.CreatedAt)
		require.NoError(t, err)
		f.CreatedAt = time.Date(2031, 1, 1, 22, 4, 5, 678901000, time.UTC)
		f.ExpiresAt = f.CreatedAt.Add(time.Hour)
		require.Equal(t, f, got)
	},

	"a name that cannot be stored is changed": func(t *testing.T, open Open) {
		s := migrated(t, open)
		f := newFile("file-1")
		f.Filename = "nul\x00 \xff" + strings.Repeat("x", store.MaxTextBytes)
		createFiles(t, s, f)
		got, err := s.File(t.Context(), f.Tenant, f.ID, fileTime)
		require.NoError(t, err)
		require.Equal(t, store.CleanText(f.Filename), got.Filename)
		require.Len(t, got.Filename, store.MaxTextBytes)
	},

	"a file that cannot be stored is refused": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for _, change := range []func(*store.File){
			func(f *store.File) { f.ID = "" },
			func(f *store.File) { f.Tenant = "" },
			func(f *store.File) { f.Tenant = "nul\x00" },
			func(f *store.File) { f.Purpose = "" },
			func(f *store.File) { f.Digest = "" },
			func(f *store.File) { f.Bytes = -1 },
			func(f *store.File) { f.CreatedAt = time.Time{} },
		} {
			f := newFile("file-1")
			change(&f)
			require.ErrorIs(t, s.CreateFile(t.Context(), f), store.ErrInvalid)
		}
		ids, _ := listFiles(t, s, store.FileFilter{Tenant: "acme"})
		require.Empty(t, ids)
	},

	"an id is stored once": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createFiles(t, s, newFile("file-1"))
		other := newFile("file-1")
		other.Tenant = "others"
		require.ErrorIs(t, s.CreateFile(t.Context(), other), store.ErrDuplicate)
		_, err := s.File(t.Context(), "others", "file-1", fileTime)
		require.ErrorIs(t, err, store.ErrNotFound)
	},

	"a file belongs to its tenant": func(t *testing.T, open Open) {
		s := migrated(t, open)
		theirs := newFile("file-2")
		theirs.Tenant = "others"
		createFiles(t, s, newFile("file-1"), theirs)
		for _, id := range []string{"file-2", "file-3", "", "nul\x00", "\xff"} {
			_, err := s.File(t.Context(), "acme", id, fileTime)
			require.ErrorIs(t, err, store.ErrNotFound)
			require.ErrorIs(t, s.DeleteFile(t.Context(), "acme", id, fileTime), store.ErrNotFound)
		}
		ids, more := listFiles(t, s, store.FileFilter{Tenant: "acme"})
		require.Equal(t, []string{"file-1"}, ids)
		require.False(t, more)
		_, _, err := s.ListFiles(t.Context(), store.FileFilter{Tenant: "acme", After: "file-2"})
		require.ErrorIs(t, err, store.ErrNotFound)
		_, err = s.File(t.Context(), "others", "file-2", fileTime)
		require.NoError(t, err)
	},

	"files are listed by time and id, either way and page by page": func(t *testing.T, open Open) {
		s := migrated(t, open)
		var oldestFirst []string
		for i := range 7 {
			f := newFile(fmt.Sprintf("file-%d", i))
			f.CreatedAt = fileTime.Add(time.Duration(i/3) * time.Microsecond) // ties of three
			if i%2 == 1 {
				f.Purpose = "vision"
			}
			createFiles(t, s, f)
			oldestFirst = append(oldestFirst, f.ID)
		}
		newestFirst := slices.Clone(oldestFirst)
		slices.Reverse(newestFirst)
		for _, ascending := range []bool{true, false} {
			want := map[bool][]string{true: oldestFirst, false: newestFirst}[ascending]
			filter := store.FileFilter{Tenant: "acme", Ascending: ascending, Limit: 3}
			var got []string
			for {
				page, more := listFiles(t, s, filter)
				got = append(got, page...)
				require.Equal(t, len(got) < len(want), more)
				if !more {
					break
				}
				filter.After = page[len(page)-1]
			}
			require.Equal(t, want, got)
		}
		page, more := listFiles(t, s, store.FileFilter{Tenant: "acme", Purpose: "vision", After: "file-5"})
		require.Equal(t, []string{"file-3", "file-1"}, page)
		require.False(t, more)
	},

	"a file that has expired is not found": func(t *testing.T, open Open) {
		s := migrated(t, open)
		brief := newFile("file-1")
		brief.ExpiresAt = fileTime.Add(time.Hour)
		createFiles(t, s, brief, newFile("file-2"))
		_, err := s.File(t.Context(), "acme", "file-1", brief.ExpiresAt.Add(-time.Microsecond))
		require.NoError(t, err)
		_, err = s.File(t.Context(), "acme", "file-1", brief.ExpiresAt)
		require.ErrorIs(t, err, store.ErrNotFound)
		require.ErrorIs(t, s.DeleteFile(t.Context(), "acme", "file-1", brief.ExpiresAt), store.ErrNotFound)
		ids, _ := listFiles(t, s, store.FileFilter{Tenant: "acme", Now: brief.ExpiresAt})
		require.Equal(t, []string{"file-2"}, ids)
		ids, _ = listFiles(t, s, store.FileFilter{Tenant: "acme", Now: brief.ExpiresAt, After: "file-1", Ascending: true})
		require.Equal(t, []string{"file-2"}, ids, "a list goes on behind it")
	},

	"a file is deleted once": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createFiles(t, s, newFile("file-1"), newFile("file-2"))
		require.NoError(t, s.DeleteFile(t.Context(), "acme", "file-1", fileTime))
		require.ErrorIs(t, s.DeleteFile(t.Context(), "acme", "file-1", fileTime), store.ErrNotFound)
		ids, _ := listFiles(t, s, store.FileFilter{Tenant: "acme"})
		require.Equal(t, []string{"file-2"}, ids)
	},

	"expired files are taken in portions, each by one caller": func(t *testing.T, open Open) {
		s := migrated(t, open)
		const files = 40
		for i := range files {
			f := newFile(fmt.Sprintf("file-%02d", i))
			f.ExpiresAt = fileTime.Add(time.Duration(files-i) * time.Second)
			createFiles(t, s, f)
		}
		createFiles(t, s, newFile("file-for-ever"))
		first, err := s.TakeExpiredFiles(t.Context(), fileTime.Add(2*time.Second), 10)
		require.NoError(t, err)
		require.ElementsMatch(t, []string{"file-38", "file-39"}, first)

		var (
			mu    sync.Mutex
			taken []string
			all   sync.WaitGroup
		)
		for range 4 {
			other := open()
			all.Go(func() {
				for range files {
					ids, err := other.TakeExpiredFiles(t.Context(), fileTime.Add(time.Hour), 3)
					mu.Lock()
					taken = append(taken, ids...)
					mu.Unlock()
					if err != nil || len(ids) > 3 {
						t.Errorf("took %d files at once: %v", len(ids), err)
					}
				}
			})
		}
		all.Wait()
		slices.Sort(taken)
		require.Len(t, slices.Compact(slices.Clone(taken)), files-2)
		require.Len(t, taken, files-2, "none is taken twice")
		ids, _ := listFiles(t, s, store.FileFilter{Tenant: "acme"})
		require.Equal(t, []string{"file-for-ever"}, ids)
	},

	"known files are told from strays": func(t *testing.T, open Open) {
		s := migrated(t, open)
		theirs := newFile("file-2")
		theirs.Tenant, theirs.ExpiresAt = "others", fileTime
		createFiles(t, s, newFile("file-1"), theirs)
		known, err := s.KnownFiles(t.Context(), []string{"file-1", "file-2", `file-"3`, ""})
		require.NoError(t, err)
		require.ElementsMatch(t, []string{"file-1", "file-2"}, known)
		known, err = s.KnownFiles(t.Context(), nil)
		require.NoError(t, err)
		require.Empty(t, known)
		_, err = s.KnownFiles(t.Context(), make([]string, store.MaxFilesSwept+1))
		require.ErrorIs(t, err, store.ErrInvalid)
	},
}
