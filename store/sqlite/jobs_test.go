package sqlite_test

import (
	"path/filepath"
	"testing"

	"sluice/store/storetest"
)

// What background jobs cost the database.
func BenchmarkJobs(b *testing.B) {
	storetest.BenchmarkJobs(b, open(b, filepath.Join(b.TempDir(), "sluice.db")))
}
