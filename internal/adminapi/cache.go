package adminapi

// CachePath is where the cache is shown and purged.
const CachePath = "/admin/v1/cache"

// Cache is the body of GET /admin/v1/cache.
type Cache struct {
	Database CacheLevel `json:"database"`
	Memory   CacheLevel `json:"memory"` // of the ingress that answers
	// What that ingress's cache did since it began.
	Hits   int64 `json:"hits"`
	Misses int64 `json:"misses"`
	Stale  int64 `json:"stale"`
}

// CacheLevel is how much one level keeps, and may.
type CacheLevel struct {
	Entries  int64 `json:"entries"`
	Bytes    int64 `json:"bytes"`
	MaxBytes int64 `json:"max_bytes"`
}

// CachePurged is the body of the answer to DELETE /admin/v1/cache.
type CachePurged struct {
	Deleted int `json:"deleted"`
}
