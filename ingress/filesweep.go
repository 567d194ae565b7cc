package ingress

import (
	"context"
	"time"

	"sluice/internal/queue"
)

// Rhythm and bounds of what is done about files in the background.
const (
	filesReadyEvery = time.Second // until the object store is there
	filesEvery      = time.Minute
	strayEvery      = time.Hour
	strayAge        = time.Hour // since which nothing was added to an object without a row; batches give theirs rows sooner
	expirePortion   = 100       // files at once
	expirePortions  = 100       // in one round
)

// run carries out expiry and sweeps strays until ctx ends. Every ingress does so: a file
// that has expired is given to one of them, and to remove a stray twice does no harm.
func (f *files) run(ctx context.Context) {
	swept := time.Now()
	for ctx.Err() == nil {
		wait := filesEvery
		if f.ready(ctx) {
			f.expire(ctx, time.Now())
			if time.Since(swept) >= strayEvery {
				swept = time.Now()
				f.sweep(ctx, swept)
			}
		} else {
			wait = filesReadyEvery
		}
		pause(ctx, wait)
	}
}

// ready makes sure of the object store, and says once that it is not there.
func (f *files) ready(ctx context.Context) bool {
	err := f.conn.EnsureFiles(ctx)
	if err != nil && !f.unready && ctx.Err() == nil {
		f.log.Warn("object store for files is not ready", "error", err)
	}
	f.unready = err != nil
	return err == nil
}

// expire removes files whose time is over. Whoever took the row removes the content; if
// that fails it is a stray.
func (f *files) expire(ctx context.Context, now time.Time) {
	for range expirePortions {
		ids, err := f.opt.Rows.TakeExpiredFiles(ctx, now, expirePortion)
		if err != nil {
			if ctx.Err() == nil {
				f.log.Warn("expired files not removed; it will be tried again", "error", err)
			}
			return
		}
		for _, id := range ids {
			f.drop(ctx, id)
		}
		if len(ids) < expirePortion {
			return
		}
	}
}

// sweep removes objects that no row names and that nobody has added to for a while.
func (f *files) sweep(ctx context.Context, now time.Time) {
	entries, removed := f.conn.NewEntryReader(), 0
	for {
		batch, err := entries.Next(ctx)
		if err == nil && len(batch) == 0 {
			break
		}
		var n int
		if err == nil {
			n, err = f.sweepBatch(ctx, batch, now.Add(-strayAge))
		}
		removed += n
		if err != nil {
			if ctx.Err() == nil {
				f.log.Warn("stray contents of files not removed; it will be tried again", "error", err)
			}
			break
		}
	}
	if removed > 0 {
		f.log.Info("removed contents that no file has", "objects", removed)
	}
}

func (f *files) sweepBatch(ctx context.Context, batch []queue.FileEntry, before time.Time) (removed int, err error) {
	strays := make(map[string]bool)
	var ids []string
	for _, e := range batch {
		if e.At.Before(before) {
			strays[e.ID] = true
			ids = append(ids, e.ID)
		}
	}
	if len(ids) == 0 {
		return 0, nil
	}
	known, err := f.opt.Rows.KnownFiles(ctx, ids)
	if err != nil {
		return 0, err
	}
	for _, id := range known {
		delete(strays, id)
	}
	for id := range strays {
		touched, err := f.conn.FileTouched(ctx, id)
		if err != nil {
			return removed, err
		}
		if touched.After(before) {
			continue // a slow upload
		}
		if err := f.conn.RemoveFile(ctx, id); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}
