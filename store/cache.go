package store

import (
	"context"
	"fmt"
	"time"
)

// Limits of the calls about cached answers.
const (
	MaxCachedBytes = 64 << 20 // of one answer
	MaxCachePut    = 512      // answers in one PutCached
	cachedOverhead = 512      // bytes that an answer takes besides its body
)

// CachedAnswer is an answer that may be given again. Its body is as sensitive as the
// request that it was given to.
type CachedAnswer struct {
	Key      [32]byte // of all that decides on the answer
	Kind     string
	Tenant   string
	KeyID    string // the API key whose request it was first given to
	Model    string // as it was asked for, an alias replaced
	Provider string
	Served   string // the model that the provider says it used
	Dropped  string // fields of the request that the provider could not honour
	Body     []byte

	// Generation is the last ForgetCached that was known when the request came: a later one
	// that covers the answer forgets it, also when it is stored only after that.
	Generation int64

	CreatedAt  time.Time
	FreshUntil time.Time
	StaleUntil time.Time // after that it is gone; not before FreshUntil
}

// Size is how many bytes the answer counts for.
func (a *CachedAnswer) Size() int64 { return int64(len(a.Body)) + cachedOverhead }

// SizeOfCached is how many bytes the answers count for together.
func SizeOfCached(answers []CachedAnswer) (size int64) {
	for i := range answers {
		size += answers[i].Size()
	}
	return size
}

// CacheFilter selects answers that have all it names. Empty fields select everything.
type CacheFilter struct {
	Model  string
	Tenant string
	KeyID  string
}

// Clean returns the filter with its texts as the database keeps them.
func (f CacheFilter) Clean() CacheFilter {
	return CacheFilter{Model: CleanText(f.Model), Tenant: CleanText(f.Tenant), KeyID: CleanText(f.KeyID)}
}

// Covers reports whether the filter selects the answer.
func (f CacheFilter) Covers(a *CachedAnswer) bool {
	return (f.Model == "" || f.Model == a.Model) && (f.Tenant == "" || f.Tenant == a.Tenant) && (f.KeyID == "" || f.KeyID == a.KeyID)
}

// CachePurge is a ForgetCached: it covers answers of an earlier generation.
type CachePurge struct {
	Generation int64
	Filter     CacheFilter
	At         time.Time
}

// Forgets reports whether the answer is one that must not be given any more.
func (p *CachePurge) Forgets(a *CachedAnswer) bool {
	return a.Generation < p.Generation && p.Filter.Covers(a)
}

// Cache is the part of the store that keeps answers to be given again. It may lose any of
// them; what it was told to forget it never gives. Times are the callers'.
type Cache interface {
	// Cached returns the answer of this key, unless it is gone by now. Errors: ErrNotFound.
	Cached(ctx context.Context, key [32]byte, now time.Time) (CachedAnswer, error)

	// CachedKeys returns at most limit keys of answers behind one, in order, also of those
	// that are gone and not removed yet.
	CachedKeys(ctx context.Context, after [32]byte, limit int) ([][32]byte, error)

	// PutCached keeps answers, each in the place of an earlier one with its key; in that of a
	// later one it is not put. Those that have been forgotten meanwhile are left out. Errors:
	// ErrInvalid for more than MaxCachePut and for an answer that can never be kept.
	PutCached(ctx context.Context, answers []CachedAnswer) error

	// ForgetCached forgets the answers that the filter selects: from its return on Cached
	// gives none of them, nor one that was asked for before. Their bytes go with
	// DropForgotten.
	ForgetCached(ctx context.Context, filter CacheFilter, now time.Time) (CachePurge, error)

	// DropForgotten removes at most limit answers that the purge covers, in the order of
	// their keys and behind one of them, and returns the last one's. Fewer than limit says
	// that there are no more.
	DropForgotten(ctx context.Context, purge CachePurge, after [32]byte, limit int) (removed int, last [32]byte, err error)

	// CachePurges returns at most MaxPage purges behind a generation, in order.
	CachePurges(ctx context.Context, after int64) ([]CachePurge, error)

	// CacheGeneration returns the last purge's generation, zero if there was none.
	CacheGeneration(ctx context.Context) (int64, error)

	// PruneCachePurges forgets the oldest purge from before a time, unless there is still an
	// answer that it covers: at most limit of those are removed instead. It reports whether
	// there is more to do.
	PruneCachePurges(ctx context.Context, before time.Time, limit int) (more bool, err error)

	// ExpireCached removes at most limit answers that are gone by now.
	ExpireCached(ctx context.Context, now time.Time, limit int) (removed int, err error)

	// TrimCached removes at most limit answers, the oldest ones, while all of them take more
	// than most bytes. Of callers at once one alone does it.
	TrimCached(ctx context.Context, most int64, limit int) (removed int, err error)

	// CacheSize returns how many answers there are, and the bytes that they count for.
	CacheSize(ctx context.Context) (answers, bytes int64, err error)
}

// Clean returns the answer as the database keeps it.
func (a *CachedAnswer) Clean() CachedAnswer {
	clean := *a
	for _, s := range []*string{&clean.Kind, &clean.Tenant, &clean.KeyID, &clean.Model, &clean.Provider, &clean.Served, &clean.Dropped} {
		*s = CleanText(*s)
	}
	clean.CreatedAt, clean.FreshUntil, clean.StaleUntil = CleanTime(a.CreatedAt), CleanTime(a.FreshUntil), CleanTime(a.StaleUntil)
	return clean
}

// CleanCached returns the answers of one PutCached as the database keeps them.
func CleanCached(answers []CachedAnswer) ([]CachedAnswer, error) {
	if len(answers) > MaxCachePut {
		return nil, fmt.Errorf("%d answers at once, more than %d: %w", len(answers), MaxCachePut, ErrInvalid)
	}
	clean := make([]CachedAnswer, len(answers))
	for i, a := range answers {
		switch {
		case !isName(a.Tenant) || a.Kind == "":
			return nil, fmt.Errorf("cached answer %d has no tenant or kind: %w", i+1, ErrInvalid)
		case len(a.Body) == 0 || len(a.Body) > MaxCachedBytes:
			return nil, fmt.Errorf("cached answer %d has %d bytes: %w", i+1, len(a.Body), ErrInvalid)
		case a.StaleUntil.Before(a.FreshUntil) || a.CreatedAt.IsZero():
			return nil, fmt.Errorf("times of cached answer %d: %w", i+1, ErrInvalid)
		}
		clean[i] = a.Clean()
	}
	return clean, nil
}
