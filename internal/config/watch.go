package config

import (
	"context"
	"os"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Rhythm of a watch.
const (
	watchQuiet = 100 * time.Millisecond // after the last event, before the file is read
	watchMost  = time.Second            // after the first event, however many follow
	watchPoll  = 3 * time.Second        // without an event: file systems of a network tell of none
	goneFor    = 3 * time.Second        // before a file that is away, or empty, is taken for what somebody wants
)

// Unreadable stands for the hash of a file that cannot be read.
const Unreadable = ""

// Watch calls changed whenever the content of the file at path has another hash than what
// read returns: the content that was last read, whoever asked for that. It does so until ctx
// ends. The hash that it passes is the new content's: by the time it is used there may be
// another. Of a content that is not read when it is told of, changed hears more than once. It
// does not matter how the file is changed: written in place, replaced by a rename,
// deleted and made again, or reached through symbolic links of which one points elsewhere
// (as Kubernetes replaces a ConfigMap). Of a file that is away, or empty, for a moment
// nothing is told: somebody writes it anew. One that cannot be read for longer is told of,
// with Unreadable as its hash. A pipe or a terminal has nothing more to say when it was
// read, and is not followed.
func Watch(ctx context.Context, path string, read func() string, changed func(hash string)) {
	if info, err := os.Stat(path); err == nil && info.Mode()&(os.ModeNamedPipe|os.ModeCharDevice|os.ModeSocket) != 0 {
		return
	}
	w := &watch{path: path, read: read, changed: changed}
	w.begin()
	defer w.close()
	poll := time.NewTimer(watchPoll)
	defer poll.Stop()
	settled := false
	for {
		poll.Reset(w.look(time.Now(), settled))
		settled = false
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		case <-w.events():
			settled = w.settle(ctx)
		case _, open := <-w.errors(): // events were lost
			if open {
				settled = w.settle(ctx)
			}
		}
	}
}

// watch follows one file.
type watch struct {
	path    string
	read    func() string // hash of the content last read
	changed func(hash string)

	notify *fsnotify.Watcher // nil where there is none to be had: then the file is polled
	dirs   []string          // that are watched
	seen   string            // hash of what the last look found
	goneAt time.Time         // since when the file has no content, or cannot be read; zero: it has some
}

func (w *watch) begin() {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return // the system has no more to give; the poll finds changes, too
	}
	w.notify = notify
}

func (w *watch) close() {
	if w.notify != nil {
		_ = w.notify.Close()
	}
}

// events returns what tells of something in the directories that are watched.
func (w *watch) events() <-chan fsnotify.Event {
	if w.notify == nil {
		return nil
	}
	return w.notify.Events
}

func (w *watch) errors() <-chan error {
	if w.notify == nil {
		return nil
	}
	return w.notify.Errors
}

// settle waits until nothing has happened for a moment, so that a file which is being
// written is read when it is whole. It reports whether there was such a moment.
func (w *watch) settle(ctx context.Context) bool {
	quiet := time.NewTimer(watchQuiet)
	defer quiet.Stop()
	most := time.NewTimer(watchMost)
	defer most.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-w.events():
			quiet.Reset(watchQuiet)
		case _, open := <-w.errors():
			if !open {
				return false
			}
		case <-quiet.C:
			return true
		case <-most.C: // it does not become quiet
			return true
		}
	}
}

// look reads the file and tells of it if it is another one. One that nobody has waited for,
// since nothing told of its change, may be half written: it must be the same at the next look.
// look returns how long it can be until then.
func (w *watch) look(now time.Time, settled bool) time.Duration {
	w.follow()
	hash, empty := Unreadable, true
	if data, err := readFile(w.path); err == nil {
		hash, empty = hashOf(data), len(data) == 0
	}
	settled = settled || hash == w.seen
	w.seen = hash
	switch {
	case !empty:
		w.goneAt = time.Time{}
	case w.goneAt.IsZero():
		w.goneAt = now
	}
	if hash == w.read() {
		return watchPoll
	}
	if left := goneFor - now.Sub(w.goneAt); empty && left > 0 {
		return left
	}
	if !settled {
		return watchQuiet
	}
	w.changed(hash)
	return watchPoll
}

// follow watches the directories in which a change is heard of: that of the file, and that
// of each link on the way to it. One that was away and is back is watched again.
func (w *watch) follow() {
	if w.notify == nil {
		return
	}
	dirs := directoriesOf(w.path)
	for _, gone := range w.dirs {
		if !slices.Contains(dirs, gone) {
			_ = w.notify.Remove(gone) // it may have gone by itself
		}
	}
	w.dirs = w.dirs[:0]
	for _, dir := range dirs {
		if w.notify.Add(dir) == nil { // one that is not there is looked for by the poll
			w.dirs = append(w.dirs, dir)
		}
	}
}
