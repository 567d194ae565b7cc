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

// What the ledger costs the database.
func BenchmarkUsage(b *testing.B) {
	storetest.BenchmarkUsage(b, open(b, filepath.Join(b.TempDir(), "sluice.db")))
}

// What the cache costs the database.
func BenchmarkCache(b *testing.B) {
	storetest.BenchmarkCache(b, open(b, filepath.Join(b.TempDir(), "sluice.db")))
}
