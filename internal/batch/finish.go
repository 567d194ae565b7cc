package batch

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"sluice/internal/openaiapi"
	"sluice/store"
)

// Bounds of what the end of a batch holds at once.
const (
	endStep  = 500
	pageSize = 4 << 20 // of answers

	// rowlessMost is how long a content may be whole and have no row. After an hour it would
	// be taken for a stray.
	rowlessMost = 30 * time.Minute
)

// endLines ends what is not finished, in steps that each are one transaction.
func (e *Engine) endLines(ctx context.Context, b *store.Batch, status store.JobStatus) error {
	for {
		lines, err := e.opt.Store.EndLines(ctx, b.ID, status, time.Now(), endStep)
		if err != nil {
			return fmt.Errorf("end lines of batch %s: %w", b.ID, err)
		}
		if len(lines) == 0 {
			return nil
		}
		e.opt.Recall(ctx, lines)
	}
}

// finish writes the batch's files and completes it. Each attempt writes files of its own:
// an ingress that has lost the batch and does not know it yet may still be writing, and
// must neither disturb nor remove what the new owner writes. The rows of the files come with
// the end of the batch, so that the files of one attempt alone ever become files.
func (e *Engine) finish(ctx context.Context, b *store.Batch) error {
	end := store.BatchEnd{Status: store.BatchCompleted}
	var err error
	if b.InProgressAt.IsZero() { // cancelled while its lines were read: none of them was accepted
		return e.ended(ctx, b, end)
	}
	if end.OutputFile, err = e.write(ctx, b, "output", false); err != nil {
		return fmt.Errorf("write output of batch %s: %w", b.ID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, rowlessMost)
	defer cancel()
	if end.ErrorFile, err = e.write(ctx, b, "errors", true); err != nil {
		e.discard(ctx, end)
		return fmt.Errorf("write errors of batch %s: %w", b.ID, err)
	}
	if !b.FinalizingAt.Before(b.ExpiresAt) {
		if end.Status, err = e.lateStatus(ctx, b.ID); err != nil {
			e.discard(ctx, end)
			return fmt.Errorf("look for expired lines of batch %s: %w", b.ID, err)
		}
	}
	return e.ended(ctx, b, end)
}

func (e *Engine) ended(ctx context.Context, b *store.Batch, end store.BatchEnd) error {
	if err := e.complete(ctx, b, end); err != nil {
		return fmt.Errorf("complete batch %s: %w", b.ID, err)
	}
	e.opt.Ended()
	return nil
}

// complete stores the end. While it is not known whether that came off, it tries again with
// the same files: they must not be removed if they have become files, and need not be
// written again if they have not. When ctx ends first, contents without a row are strays.
func (e *Engine) complete(ctx context.Context, b *store.Batch, end store.BatchEnd) error {
	for unsure := false; ; unsure = true {
		end.At = time.Now()
		end.Purge = end.At.Add(e.opt.Retention)
		err := e.opt.Store.CompleteBatch(ctx, e.opt.Owner, b.ID, end)
		switch {
		case err == nil:
			return nil
		case isRefusal(err):
			return e.refused(ctx, end, unsure, err)
		}
		e.trouble(ctx, b.ID, err)
		wait(ctx, e.lease.every, nil)
		if ctx.Err() != nil {
			return err
		}
	}
}

// isRefusal reports whether the database answered that it does not store the end.
func isRefusal(err error) bool {
	for _, sure := range []error{store.ErrLeaseLost, store.ErrConflict, store.ErrInvalid, store.ErrDuplicate} {
		if errors.Is(err, sure) {
			return true
		}
	}
	return false
}

// refused removes the files of an end that was refused. If there was an attempt before of
// which nobody knew how it ended, it may have been the one that stored the end.
func (e *Engine) refused(ctx context.Context, end store.BatchEnd, unsure bool, err error) error {
	if unsure {
		known, lookErr := e.opt.Files.KnownFiles(ctx, fileIDs(end))
		if lookErr != nil {
			return errors.Join(err, lookErr)
		}
		if len(known) > 0 {
			return nil
		}
	}
	e.discard(ctx, end)
	return err
}

// discard removes the contents of files that have no row and never get one. What it does not
// reach is removed with the other strays.
func (e *Engine) discard(ctx context.Context, end store.BatchEnd) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWait)
	defer cancel()
	for _, id := range fileIDs(end) {
		if err := e.opt.Contents.RemoveFile(ctx, id); err != nil {
			e.log.Debug("content of a batch's file left to the sweep", "file_id", id, "error", err)
		}
	}
}

func fileIDs(end store.BatchEnd) (ids []string) {
	for _, file := range end.Files() {
		ids = append(ids, file.ID)
	}
	return ids
}

// lateStatus is how a batch ended whose lines were all finished only when its time was
// over: it has expired if one of them has.
func (e *Engine) lateStatus(ctx context.Context, id string) (store.BatchStatus, error) {
	late := store.BatchCompleted
	pages := Pages(e.opt.Store, id, true)
	for {
		lines, err := pages(ctx)
		if err != nil || len(lines) == 0 {
			return late, err
		}
		for i := range lines {
			if lines[i].Status == store.JobExpired {
				return store.BatchExpired, nil
			}
		}
	}
}

// Pages returns a function that returns a batch's finished lines, those that failed or the
// others, a page at a time and none behind the last.
func Pages(from interface {
	FinishedLines(ctx context.Context, id string, f store.LineFilter) ([]store.Job, error)
}, id string, failed bool,
) func(ctx context.Context) ([]store.Job, error) {
	after := 0
	return func(ctx context.Context) ([]store.Job, error) {
		lines, err := from.FinishedLines(ctx, id, store.LineFilter{Failed: &failed, After: after, Bytes: pageSize})
		if err == nil && len(lines) > 0 {
			after = lines[len(lines)-1].Line
		}
		return lines, err
	}
}

// write writes one of the batch's files and returns the row that it is to have, none when
// there is no line for it.
func (e *Engine) write(ctx context.Context, b *store.Batch, name string, failed bool) (*store.File, error) {
	pages := Pages(e.opt.Store, b.ID, failed)
	first, err := pages(ctx)
	if err != nil || len(first) == 0 {
		return nil, err
	}
	id := store.NewFileID()
	content, err := e.opt.Contents.PutFile(ctx, id, lineText(ctx, first, pages))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	file := &store.File{
		ID: id, Tenant: b.Tenant, Purpose: openaiapi.PurposeBatchOutput, Filename: b.ID + "_" + name + ".jsonl",
		Bytes: content.Bytes, Digest: hex.EncodeToString(content.Digest[:]), CreatedAt: now,
	}
	if expires := cmp.Or(b.OutputExpires, e.opt.OutputExpires); expires > 0 {
		file.ExpiresAt = now.Add(expires)
	}
	return file, nil
}

// lineText reads lines as the file has them, one in memory besides its page.
func lineText(ctx context.Context, page []store.Job, pages func(ctx context.Context) ([]store.Job, error)) io.Reader {
	var text, rest []byte
	return reader(func(p []byte) (int, error) {
		for len(rest) == 0 {
			if len(page) == 0 {
				var err error
				if page, err = pages(ctx); err != nil {
					return 0, err
				}
				if len(page) == 0 {
					return 0, io.EOF
				}
			}
			text = AppendLine(text[:0], &page[0])
			rest, page = text, page[1:]
		}
		n := copy(p, rest)
		rest = rest[n:]
		return n, nil
	})
}
