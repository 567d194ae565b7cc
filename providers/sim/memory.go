package sim

import (
	"hash/fnv"
	"sync"
	"time"
)

const (
	rememberFor   = 15 * time.Minute
	maxRemembered = 4096 // requests; the oldest is forgotten for a new one
)

// remembered is the memory of all simulated providers of the process: a failover
// reaches another Provider, and a change of settings builds all of them anew, but the
// request is still the same.
var remembered = &memory{}

// memory counts the calls of those requests that misbehave a limited number of times.
type memory struct {
	mu     sync.Mutex
	counts map[uint64]int
	order  []noted // the oldest first
}

// noted is when a request was first seen.
type noted struct {
	key uint64
	at  time.Time
}

// count notes a call and returns the how-manieth of its request it is, from one. A
// call without an id cannot be told from others and is the first of its own.
func (m *memory) count(requestID string, body []byte, now time.Time) int {
	if requestID == "" {
		return 1
	}
	key := requestKey(requestID, body)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(func(n noted) bool { return now.Sub(n.at) >= rememberFor })
	if _, known := m.counts[key]; !known {
		m.forget(func(noted) bool { return len(m.order) >= maxRemembered })
		if m.counts == nil {
			m.counts = map[uint64]int{}
		}
		m.order = append(m.order, noted{key, now})
	}
	m.counts[key]++
	return m.counts[key]
}

// forget drops requests, the oldest first, as long as one is to go.
func (m *memory) forget(gone func(noted) bool) {
	for len(m.order) > 0 && gone(m.order[0]) {
		delete(m.counts, m.order[0].key)
		m.order = m.order[1:]
	}
}

// requestKey tells requests apart. The body counts too, because it is the client who
// chooses the id and may choose one twice.
func requestKey(requestID string, body []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(requestID)) // a hash never fails
	_, _ = h.Write([]byte{0})
	_, _ = h.Write(body)
	return scramble(h.Sum64())
}
