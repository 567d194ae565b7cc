package batch

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"sluice/internal/openaiapi"
	"sluice/store"
)

// Bounds of what the end of a batch holds at once.
const (
	endStep  = 500
	pageSize = 4 << 20 // of answers
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

// finish writes the batch's files and completes it. Every step may be repeated: the files
// have ids of the batch's own, and the same lines give the same bytes.
func (e *Engine) finish(ctx context.Context, b *store.Batch) error {
	end := store.BatchEnd{Status: store.BatchCompleted}
	var err error
	if end.OutputFile, err = e.write(ctx, b, "output", false); err != nil {
		return fmt.Errorf("write output of batch %s: %w", b.ID, err)
	}
	if end.ErrorFile, err = e.write(ctx, b, "errors", true); err != nil {
		return fmt.Errorf("write errors of batch %s: %w", b.ID, err)
	}
	switch {
	case !b.CancellingAt.IsZero():
		end.Status = store.BatchCancelled
	case !b.FinalizingAt.Before(b.ExpiresAt):
		if end.Status, err = e.lateStatus(ctx, b.ID); err != nil {
			return fmt.Errorf("look for expired lines of batch %s: %w", b.ID, err)
		}
	}
	end.At = time.Now()
	end.Purge = end.At.Add(e.opt.Retention)
	if err := e.opt.Store.CompleteBatch(ctx, e.opt.Owner, b.ID, end); err != nil {
		return fmt.Errorf("complete batch %s: %w", b.ID, err)
	}
	e.opt.Ended()
	return nil
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

// write writes one of the batch's files and returns its id, none when there is no line
// for it. What an earlier attempt left of it is replaced.
func (e *Engine) write(ctx context.Context, b *store.Batch, name string, failed bool) (string, error) {
	id := FileID(b.ID, name)
	switch _, err := e.opt.Files.File(ctx, b.Tenant, id, time.Now()); {
	case err == nil:
		return id, nil // an earlier attempt came further than this
	case !errors.Is(err, store.ErrNotFound):
		return "", err
	}
	pages := Pages(e.opt.Store, b.ID, failed)
	first, err := pages(ctx)
	if err != nil || len(first) == 0 {
		return "", err
	}
	if err := e.opt.Contents.RemoveFile(ctx, id); err != nil {
		return "", err
	}
	content, err := e.opt.Contents.PutFile(ctx, id, lineText(ctx, first, pages))
	if err != nil {
		return "", err
	}
	now := time.Now()
	file := store.File{
		ID: id, Tenant: b.Tenant, Purpose: openaiapi.PurposeBatchOutput, Filename: b.ID + "_" + name + ".jsonl",
		Bytes: content.Bytes, Digest: hex.EncodeToString(content.Digest[:]), CreatedAt: now,
	}
	if expires := cmp.Or(b.OutputExpires, e.opt.OutputExpires); expires > 0 {
		file.ExpiresAt = now.Add(expires)
	}
	if err := e.opt.Files.CreateFile(ctx, file); err != nil && !errors.Is(err, store.ErrDuplicate) {
		return "", err
	}
	return id, nil
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

var fileIDs = base32.StdEncoding.WithPadding(base32.NoPadding)

// FileID returns the id of one of a batch's files. It is always the same, so that whoever
// writes the file again replaces it.
func FileID(batchID, name string) string {
	sum := sha256.Sum256([]byte(name + " of " + batchID))
	return "file-" + strings.ToLower(fileIDs.EncodeToString(sum[:15]))
}
