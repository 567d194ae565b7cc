package sqlite_test

import (
	"path/filepath"
	"testing"

	"sluice/store/storetest"
)

// What batches cost the database.
func BenchmarkBatches(b *testing.B) {
	storetest.BenchmarkBatches(b, open(b, filepath.Join(b.TempDir(), "sluice.db")))
}
