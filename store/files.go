package store

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"time"
)

// File is what is known of a stored file. Its content is in the queue's object store,
// under the file's id.
type File struct {
	ID        string
	Tenant    string
	Purpose   string
	Filename  string
	Bytes     int64
	Digest    string // SHA-256 of the content, in hexadecimal
	CreatedAt time.Time
	ExpiresAt time.Time // zero: never
}

// Expired reports whether the file's time is over.
func (f File) Expired(now time.Time) bool { return !f.ExpiresAt.IsZero() && !now.Before(f.ExpiresAt) }

// Limits of the calls about files.
const (
	MaxFiles      = 10_000 // files that one ListFiles returns
	MaxFilesSwept = 1000   // in one TakeExpiredFiles or KnownFiles
)

// FileFilter selects files of one tenant. Zero fields select everything.
type FileFilter struct {
	Tenant  string
	Purpose string
	Now     time.Time // files that have expired by then are left out

	Ascending bool   // oldest first
	After     string // continue behind the file of this id
	Limit     int    // at most MaxFiles; zero: MaxFiles
}

// Clean returns the filter with its limit set and bounded, and its texts and time as
// the database keeps them.
func (f FileFilter) Clean() FileFilter {
	if f.Limit <= 0 {
		f.Limit = MaxFiles
	}
	f.Limit = min(f.Limit, MaxFiles)
	f.Tenant, f.Purpose, f.After = CleanText(f.Tenant), CleanText(f.Purpose), CleanText(f.After)
	f.Now = CleanTime(f.Now)
	return f
}

// Files is the part of the store that remembers files. A file belongs to its tenant:
// nobody else finds it. Those that have expired are not found any more, although their
// rows stay until TakeExpiredFiles.
type Files interface {
	// CreateFile stores a file whose content is whole and safe. Times are kept in
	// microseconds. Errors: ErrInvalid, ErrDuplicate.
	CreateFile(ctx context.Context, file File) error

	// File returns the tenant's file of this id, unless it has expired by now.
	// Errors: ErrNotFound.
	File(ctx context.Context, tenant, id string, now time.Time) (File, error)

	// ListFiles returns the files that the filter selects, by the time of their making
	// and then by id, and whether there are more behind them. Errors: ErrNotFound when
	// the tenant has no file of the id to continue behind.
	ListFiles(ctx context.Context, filter FileFilter) (files []File, more bool, err error)

	// DeleteFile removes the tenant's file of this id, unless it has expired by now.
	// Errors: ErrNotFound.
	DeleteFile(ctx context.Context, tenant, id string, now time.Time) error

	// TakeExpiredFiles removes files that have expired by now, those that did first,
	// and returns the ids of their contents. A file is given to one caller alone.
	TakeExpiredFiles(ctx context.Context, now time.Time, limit int) (ids []string, err error)

	// KnownFiles returns those of the ids that a file has, of whatever tenant, also when
	// it has expired. Errors: ErrInvalid for more than MaxFilesSwept ids.
	KnownFiles(ctx context.Context, ids []string) (known []string, err error)
}

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewFileID returns a fresh id of a file.
func NewFileID() string {
	var b [15]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
	return "file-" + idEncoding.EncodeToString(b[:])
}

// Clean returns the file as the database keeps it. Its name is the client's own text:
// it is changed rather than refused.
func (f File) Clean() File {
	f.Filename = CleanText(f.Filename)
	f.CreatedAt = CleanTime(f.CreatedAt)
	if !f.ExpiresAt.IsZero() {
		f.ExpiresAt = CleanTime(f.ExpiresAt)
	}
	return f
}

// Validate says whether the file can be stored. Everything but the name is of our own
// making, so a fault is one of ours.
func (f File) Validate() error {
	for name, text := range map[string]string{"id": f.ID, "tenant": f.Tenant, "purpose": f.Purpose, "digest": f.Digest} {
		if text == "" {
			return fmt.Errorf("%w: file %s is empty", ErrInvalid, name)
		}
		if problem := checkText(text); problem != "" {
			return fmt.Errorf("%w: file %s %s", ErrInvalid, name, problem)
		}
	}
	if f.Bytes < 0 || f.CreatedAt.IsZero() {
		return fmt.Errorf("%w: file %s has no size or no time", ErrInvalid, f.ID)
	}
	return nil
}

// CheckSwept refuses more ids than one call may ask for.
func CheckSwept(ids []string) error {
	if len(ids) > MaxFilesSwept {
		return fmt.Errorf("%w: %d ids of files, more than %d", ErrInvalid, len(ids), MaxFilesSwept)
	}
	return nil
}
