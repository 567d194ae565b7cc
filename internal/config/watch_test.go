package config

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// soon is how long a test waits for what must happen; nothing takes nearly as long.
const soon = 30 * time.Second

func write(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

// replace puts a file in the place of another one, as careful editors do.
func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	require.NoError(t, os.Rename(path+".new", path))
}

// watching follows the file until the test ends, and says what its content is each time
// that it is told of a change.
func watching(t *testing.T, path string) <-chan string {
	t.Helper()
	hash, err := HashFile(path)
	require.NoError(t, err)
	told := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Watch(ctx, path, func() string { return hash }, func(now string) {
			hash = now
			text, _ := os.ReadFile(path) // none is told of as none
			told <- string(text)
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return told
}

func tells(t *testing.T, told <-chan string, want string) {
	t.Helper()
	select {
	case text := <-told:
		require.Equal(t, want, text)
	case <-time.After(soon):
		require.FailNow(t, "the change was not heard of", want)
	}
}

// However a file is changed, it is heard of once, with what is then in it.
func TestWatchHearsEveryKindOfChange(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(t *testing.T, path, text string){
		"written in place": write,
		"renamed over":     replace,
		"deleted and made again": func(t *testing.T, path, text string) {
			t.Helper()
			require.NoError(t, os.Remove(path))
			write(t, path, text)
		},
		"moved aside and made again": func(t *testing.T, path, text string) {
			t.Helper()
			require.NoError(t, os.Rename(path, path+"~"))
			write(t, path, text)
		},
		"written in parts": func(t *testing.T, path, text string) {
			t.Helper()
			f, err := os.Create(path)
			require.NoError(t, err)
			for i := range text {
				_, err := f.WriteString(text[i : i+1])
				require.NoError(t, err)
			}
			require.NoError(t, f.Close())
		},
		"its directory made again": func(t *testing.T, path, text string) {
			t.Helper()
			require.NoError(t, os.RemoveAll(filepath.Dir(path)))
			require.NoError(t, os.Mkdir(filepath.Dir(path), 0o700))
			write(t, path, text)
		},
		"its directory moved aside": func(t *testing.T, path, text string) {
			t.Helper()
			require.NoError(t, os.Rename(filepath.Dir(path), t.TempDir()+"/aside"))
			require.NoError(t, os.Mkdir(filepath.Dir(path), 0o700))
			write(t, path, text)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "etc")
			require.NoError(t, os.Mkdir(dir, 0o700))
			path := filepath.Join(dir, "sluice.yaml")
			write(t, path, "a: 1")
			told := watching(t, path)
			for _, text := range []string{"a: 2", "a: 3", "a: 1"} {
				change(t, path, text)
				tells(t, told, text)
			}
			require.Empty(t, told)
		})
	}
}

// A change that is found without having been heard of may be half of one.
func TestWatchWaitsForAFileThatItComesUpon(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sluice.yaml")
	told := 0
	w := &watch{path: path, read: func() string { return hashOf([]byte("a: 1")) }, changed: func(string) { told++ }}
	for _, part := range []string{"a", "a:", "a: 2"} {
		write(t, path, part)
		require.Equal(t, watchQuiet, w.look(time.Now(), false), part)
		require.Zero(t, told, part)
	}
	require.Equal(t, watchPoll, w.look(time.Now(), false))
	require.Equal(t, 1, told, "nobody writes any more")
}

// A ConfigMap is a directory whose files are links through ..data, which is swapped.
func TestWatchHearsOfASwappedLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	publish := func(version, text string) {
		require.NoError(t, os.Mkdir(filepath.Join(dir, version), 0o700))
		write(t, filepath.Join(dir, version, "sluice.yaml"), text)
		require.NoError(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
		require.NoError(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	publish("..1", "a: 1")
	path := filepath.Join(dir, "sluice.yaml")
	require.NoError(t, os.Symlink(filepath.Join("..data", "sluice.yaml"), path))
	told := watching(t, path)
	publish("..2", "a: 2")
	tells(t, told, "a: 2")
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "..1")))
	publish("..3", "a: 2") // the same again
	publish("..4", "a: 4")
	tells(t, told, "a: 4")
	require.Empty(t, told)
}

// A link may lead far away, and what it leads to be changed where it is.
func TestWatchFollowsLinksToOtherDirectories(t *testing.T) {
	t.Parallel()
	dir, far := t.TempDir(), t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(far, "deep"), 0o700))
	require.NoError(t, os.Symlink(far, filepath.Join(dir, "conf")))
	target := filepath.Join(far, "deep", "real.yaml")
	write(t, target, "a: 1")
	require.NoError(t, os.Symlink(filepath.Join(dir, "conf", "deep", "real.yaml"), filepath.Join(dir, "sluice.yaml")))
	path := filepath.Join(dir, "sluice.yaml")
	require.Equal(t, []string{dir, filepath.Join(far, "deep")}, directoriesOf(path))
	told := watching(t, path)
	<-time.After(50 * time.Millisecond) // it begins to watch; without that the poll hears of it
	write(t, target, "a: 2")
	tells(t, told, "a: 2")
}

func TestDirectoriesOfALoopAreFew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.Symlink("b", filepath.Join(dir, "a")))
	require.NoError(t, os.Symlink("a", filepath.Join(dir, "b")))
	require.Equal(t, []string{dir}, directoriesOf(filepath.Join(dir, "a")))
}

// watcher is a watch without a system that tells of anything.
func watcher(t *testing.T, path string) (w *watch, changes *int) {
	t.Helper()
	hash, err := HashFile(path)
	require.NoError(t, err)
	changes = new(int)
	return &watch{path: path, read: func() string { return hash }, changed: func(now string) { hash = now; *changes++ }}, changes
}

// An editor that empties a file before it writes it must not be taken at its word; nor is
// a file that is away for a moment one that cannot be read.
func TestWatchIsNotHasty(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sluice.yaml")
	write(t, path, "a: 1")
	w, changes := watcher(t, path)
	now := time.Now()
	look := func(after time.Duration, want int, why string) {
		t.Helper()
		now = now.Add(after)
		w.look(now, true)
		require.Equal(t, want, *changes, why)
	}
	look(0, 0, "nothing has changed")
	write(t, path, "")
	look(time.Second, 0, "it is being written")
	look(goneFor-time.Millisecond, 0, "still")
	write(t, path, "a: 1")
	look(time.Second, 0, "as it was")
	write(t, path, "")
	look(time.Second, 0, "once more")
	look(goneFor, 1, "somebody means it")
	look(goneFor, 1, "and is told once")
	write(t, path, "a: 1")
	look(time.Second, 2, "it has content")
	require.NoError(t, os.Remove(path))
	look(time.Second, 2, "it is away")
	look(goneFor-time.Millisecond, 2, "still")
	write(t, path, "")
	look(time.Millisecond, 3, "what is back has been without content all the time")
	write(t, path, "a: 2")
	look(time.Second, 4, "another one")
}

// What cannot be read is told of once, when it has been so for a while; what comes back is
// told of, also as it was.
func TestWatchTellsOfWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, path string){
		"deleted": func(t *testing.T, path string) { t.Helper(); require.NoError(t, os.Remove(path)) },
		"a directory": func(t *testing.T, path string) {
			t.Helper()
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Mkdir(path, 0o700))
		},
		"a link to nothing": func(t *testing.T, path string) {
			t.Helper()
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Symlink("nothing", path))
		},
		"its directory deleted": func(t *testing.T, path string) { t.Helper(); require.NoError(t, os.RemoveAll(filepath.Dir(path))) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "etc", "sluice.yaml")
			require.NoError(t, os.Mkdir(filepath.Dir(path), 0o700))
			write(t, path, "a: 1")
			w, changes := watcher(t, path)
			now := time.Now()
			spoil(t, path)
			require.Equal(t, goneFor, w.look(now, true), "it is looked at again when it is time")
			require.Equal(t, time.Millisecond, w.look(now.Add(goneFor-time.Millisecond), true))
			require.Zero(t, *changes)
			require.Equal(t, watchPoll, w.look(now.Add(goneFor), true))
			require.Equal(t, 1, *changes)
			require.Equal(t, Unreadable, w.read())
			w.look(now.Add(2*goneFor), true)
			require.Equal(t, 1, *changes, "once")
			require.NoError(t, os.RemoveAll(path))
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
			write(t, path, "a: 1")
			require.Equal(t, watchPoll, w.look(now.Add(3*goneFor), true))
			require.Equal(t, 2, *changes, "as it was before")
		})
	}
}

// A watch that runs looks again by itself.
func TestWatchHearsThatAFileStaysAway(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sluice.yaml")
	write(t, path, "a: 1")
	told := watching(t, path)
	require.NoError(t, os.Remove(path))
	tells(t, told, "")
	write(t, path, "a: 1")
	tells(t, told, "a: 1")
	require.Empty(t, told)
}

// What was piped in is read once; nothing says that it has gone.
func TestWatchLeavesAPipe(t *testing.T) {
	t.Parallel()
	from, to, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { _ = from.Close() })
	require.NoError(t, to.Close())
	path := fmt.Sprintf("/dev/fd/%d", from.Fd())
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	Watch(ctx, path, func() string { return "what was read from it" }, func(string) { require.Fail(t, "told of a pipe") })
	require.NoError(t, ctx.Err(), "it waits for nothing")
}

// Without a word of the system the poll finds out.
func TestWatchPolls(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sluice.yaml")
	write(t, path, "a: 1")
	w, changes := watcher(t, path)
	require.Nil(t, w.events())
	require.Nil(t, w.errors())
	write(t, path, "a: 2")
	w.look(time.Now(), true)
	require.Equal(t, 1, *changes)
	w.close()
}
