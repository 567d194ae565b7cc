package statement

import (
	"fmt"
	"time"

	"sluice/store"
)

// FileColumns are the columns of a file, in the order in which they are written and
// read.
const FileColumns = `id, tenant, purpose, filename, bytes, digest, created_at, expires_at`

// alive holds for files that have not expired by the time of the parameter.
const alive = `(expires_at IS NULL OR expires_at > %s)`

// CreateFile inserts a file. One whose id is taken inserts nothing and returns no row.
const CreateFile = `INSERT INTO files (` + FileColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
	ON CONFLICT (id) DO NOTHING RETURNING ` + FileColumns

// CreateFileArgs returns the values of a clean file for CreateFile. stamp encodes a time.
func CreateFileArgs(f store.File, stamp func(time.Time) any) []any {
	return []any{f.ID, f.Tenant, f.Purpose, f.Filename, f.Bytes, f.Digest, stamp(f.CreatedAt), stamp(f.ExpiresAt)}
}

// The reading and removal of one file. All take the tenant, the id and the time, but
// FilePlace, which takes no time: a list goes on also behind a file that has expired
// meanwhile.
var (
	FileByID   = `SELECT ` + FileColumns + ` FROM files WHERE tenant = $1 AND id = $2 AND ` + fmt.Sprintf(alive, "$3")
	DeleteFile = `DELETE FROM files WHERE tenant = $1 AND id = $2 AND ` + fmt.Sprintf(alive, "$3") + ` RETURNING ` + FileColumns
	FilePlace  = `SELECT ` + FileColumns + ` FROM files WHERE tenant = $1 AND id = $2`
)

// TakeExpiredFiles removes at most $2 files that have expired by $1. lock is how the
// database skips those that another caller is about to take.
func TakeExpiredFiles(lock string) string {
	return `DELETE FROM files WHERE id IN (
		SELECT id FROM files WHERE expires_at <= $1 ORDER BY expires_at, id LIMIT $2 ` + lock + `)
		RETURNING id`
}

// SelectFiles reads one file more than the filter's limit, so that the caller knows
// whether there are more. place is the file to continue behind, if the filter has one.
// stamp encodes a time.
func SelectFiles(f store.FileFilter, place store.File, stamp func(time.Time) any) (query string, args []any) {
	args = []any{f.Tenant, stamp(f.Now)}
	conditions := `tenant = $1 AND ` + fmt.Sprintf(alive, "$2")
	order, beyond := "DESC", "<"
	if f.Ascending {
		order, beyond = "ASC", ">"
	}
	if f.Purpose != "" {
		args = append(args, f.Purpose)
		conditions += fmt.Sprintf(" AND purpose = $%d", len(args))
	}
	if f.After != "" {
		args = append(args, stamp(place.CreatedAt), place.ID)
		conditions += fmt.Sprintf(" AND (created_at, id) %s ($%d, $%d)", beyond, len(args)-1, len(args))
	}
	args = append(args, f.Limit+1)
	return fmt.Sprintf("SELECT %s FROM files WHERE %s ORDER BY created_at %s, id %s LIMIT $%d",
		FileColumns, conditions, order, order, len(args)), args
}
