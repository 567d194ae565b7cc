package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"sluice/store"
	"sluice/store/internal/statement"
)

// CreateFile implements store.Files.
func (s *Store) CreateFile(ctx context.Context, file store.File) error {
	if err := file.Validate(); err != nil {
		return err
	}
	made, err := query(ctx, s.writer, scanFile, statement.CreateFile, statement.CreateFileArgs(file.Clean(), stamp)...)
	if err != nil {
		return fmt.Errorf("create file %s: %w", file.ID, err)
	}
	if len(made) == 0 {
		return fmt.Errorf("create file %s: %w", file.ID, store.ErrDuplicate)
	}
	return nil
}

// File implements store.Files.
func (s *Store) File(ctx context.Context, tenant, id string, now time.Time) (store.File, error) {
	return oneFile(ctx, s.reader, "look up file", statement.FileByID, tenant, id, micros(now))
}

// DeleteFile implements store.Files.
func (s *Store) DeleteFile(ctx context.Context, tenant, id string, now time.Time) error {
	_, err := oneFile(ctx, s.writer, "delete file", statement.DeleteFile, tenant, id, micros(now))
	return err
}

// oneFile runs a statement about the tenant's file of the id and returns the file.
func oneFile(ctx context.Context, db *sql.DB, what, text, tenant, id string, more ...any) (store.File, error) {
	id = store.CleanText(id)
	files, err := query(ctx, db, scanFile, text, append([]any{store.CleanText(tenant), id}, more...)...)
	if err != nil {
		return store.File{}, fmt.Errorf("%s %s: %w", what, id, err)
	}
	if len(files) == 0 {
		return store.File{}, fmt.Errorf("%s %s: %w", what, id, store.ErrNotFound)
	}
	return files[0], nil
}

// ListFiles implements store.Files.
func (s *Store) ListFiles(ctx context.Context, filter store.FileFilter) (files []store.File, more bool, err error) {
	filter = filter.Clean()
	var place store.File
	if filter.After != "" {
		if place, err = oneFile(ctx, s.reader, "list files behind", statement.FilePlace, filter.Tenant, filter.After); err != nil {
			return nil, false, err
		}
	}
	text, args := statement.SelectFiles(filter, place, func(t time.Time) any { return micros(t) })
	if files, err = query(ctx, s.reader, scanFile, text, args...); err != nil {
		return nil, false, fmt.Errorf("list files: %w", err)
	}
	n := min(len(files), filter.Limit)
	return files[:n], len(files) > n, nil
}

// TakeExpiredFiles implements store.Files. There is one writer at a time, so nothing
// has to be skipped.
func (s *Store) TakeExpiredFiles(ctx context.Context, now time.Time, limit int) ([]string, error) {
	ids, err := query(ctx, s.writer, scanID, statement.TakeExpiredFiles(""), micros(now), min(limit, store.MaxFilesSwept))
	if err != nil {
		return nil, fmt.Errorf("take expired files: %w", err)
	}
	return ids, nil
}

// KnownFiles implements store.Files.
func (s *Store) KnownFiles(ctx context.Context, ids []string) ([]string, error) {
	if err := store.CheckSwept(ids); err != nil {
		return nil, err
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("encode ids: %w", err)
	}
	known, err := query(ctx, s.reader, scanID, `SELECT id FROM files WHERE id IN (SELECT value FROM json_each($1))`, string(list))
	if err != nil {
		return nil, fmt.Errorf("look up %d files: %w", len(ids), err)
	}
	return known, nil
}

func scanID(rows *sql.Rows) (id string, err error) {
	err = rows.Scan(&id)
	return id, err
}

func scanFile(rows *sql.Rows) (store.File, error) {
	var (
		f       store.File
		created int64
		expires sql.NullInt64
	)
	err := rows.Scan(&f.ID, &f.Tenant, &f.Purpose, &f.Filename, &f.Bytes, &f.Digest, &created, &expires)
	f.CreatedAt, f.ExpiresAt = fromMicros(created), fromNullMicros(expires)
	return f, err
}
