package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"sluice/store"
	"sluice/store/internal/statement"
)

// CreateFile implements store.Files.
func (s *Store) CreateFile(ctx context.Context, file store.File) error {
	if err := file.Validate(); err != nil {
		return err
	}
	made, err := query(ctx, s, scanFile, statement.CreateFile, statement.CreateFileArgs(file.Clean(), stamp)...)
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
	return s.oneFile(ctx, "look up file", statement.FileByID, tenant, id, store.CleanTime(now))
}

// DeleteFile implements store.Files.
func (s *Store) DeleteFile(ctx context.Context, tenant, id string, now time.Time) error {
	_, err := s.oneFile(ctx, "delete file", statement.DeleteFile, tenant, id, store.CleanTime(now))
	return err
}

// oneFile runs a statement about the tenant's file of the id and returns the file.
func (s *Store) oneFile(ctx context.Context, what, sql, tenant, id string, more ...any) (store.File, error) {
	id = store.CleanText(id)
	files, err := query(ctx, s, scanFile, sql, append([]any{store.CleanText(tenant), id}, more...)...)
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
		if place, err = s.oneFile(ctx, "list files behind", statement.FilePlace, filter.Tenant, filter.After); err != nil {
			return nil, false, err
		}
	}
	sql, args := statement.SelectFiles(filter, place, func(t time.Time) any { return t })
	if files, err = query(ctx, s, scanFile, sql, args...); err != nil {
		return nil, false, fmt.Errorf("list files: %w", err)
	}
	n := min(len(files), filter.Limit)
	return files[:n], len(files) > n, nil
}

// TakeExpiredFiles implements store.Files.
func (s *Store) TakeExpiredFiles(ctx context.Context, now time.Time, limit int) ([]string, error) {
	ids, err := query(ctx, s, pgx.RowTo[string], statement.TakeExpiredFiles("FOR UPDATE SKIP LOCKED"),
		store.CleanTime(now), min(limit, store.MaxFilesSwept))
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
	known, err := query(ctx, s, pgx.RowTo[string], `SELECT id FROM files WHERE id = ANY($1)`, ids)
	if err != nil {
		return nil, fmt.Errorf("look up %d files: %w", len(ids), err)
	}
	return known, nil
}

func scanFile(row pgx.CollectableRow) (store.File, error) {
	var (
		f       store.File
		expires *time.Time
	)
	err := row.Scan(&f.ID, &f.Tenant, &f.Purpose, &f.Filename, &f.Bytes, &f.Digest, &f.CreatedAt, &expires)
	f.CreatedAt, f.ExpiresAt = f.CreatedAt.UTC(), timeOrZero(expires)
	return f, err
}
