package cache

import (
	"encoding/binary"
	"math"
	"sync/atomic"
)

// Filter says of a key whether it was added: surely not, or most likely (Bloom, 1970). Of
// the keys that were not, up to its capacity, it takes about one in two thousand for one
// that was. A key is a hash already, so that its own bits say where it is noted. Filter is
// safe for concurrent use.
type Filter struct {
	words    []atomic.Uint64
	capacity int
	added    atomic.Int64
}

const (
	filterBits  = 16 // for each key
	filterMarks = 8  // of them that one key sets
)

// MaxFilter is the greatest capacity of a filter, which takes 32 MiB.
const MaxFilter = 16 << 20

// NewFilter returns a filter for so many keys, at most MaxFilter. It takes two bytes for
// each.
func NewFilter(capacity int) *Filter {
	capacity = min(max(capacity, 1), MaxFilter)
	return &Filter{words: make([]atomic.Uint64, (capacity*filterBits+63)/64), capacity: capacity}
}

// Add adds a key.
func (f *Filter) Add(k Key) {
	news := false
	for i := range filterMarks {
		word, bit := f.mark(k, i)
		news = f.words[word].Or(bit)&bit == 0 || news
	}
	if news {
		f.added.Add(1)
	}
}

// Has reports whether the key may have been added. False is certain.
func (f *Filter) Has(k Key) bool {
	for i := range filterMarks {
		if word, bit := f.mark(k, i); f.words[word].Load()&bit == 0 {
			return false
		}
	}
	return true
}

// Added is how many keys were added, but for those that it had taken for one already.
func (f *Filter) Added() int64 { return f.added.Load() }

// Full reports whether more keys were added than the filter is made for. It takes ever more
// keys then for one that was.
func (f *Filter) Full() bool { return f.Added() > int64(f.capacity) }

// mark returns the i-th place of the key: the i-th 32 bits of it, as a part of all places.
func (f *Filter) mark(k Key, i int) (word int, bit uint64) {
	at := uint64(binary.BigEndian.Uint32(k[4*i:])) * uint64(len(f.words)*64) / (math.MaxUint32 + 1)
	return int(at / 64), 1 << (at % 64)
}
