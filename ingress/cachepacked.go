package ingress

import (
	"encoding/binary"
	"time"

	"sluice/internal/cache"
	"sluice/store"
)

// packed is a clean answer in one piece, as it is kept: its numbers, the lengths of its
// texts, the texts, the body. There is no pointer in it, so that the collector has no work
// with the many answers that wait to be asked for.
type packed []byte

const (
	packedGeneration = iota // numbers of eight bytes; times in microseconds
	packedCreated
	packedFresh
	packedStale
	packedNumbers

	packedTexts   = 7
	packedLengths = 8 * packedNumbers // of four bytes
	packedHead    = packedLengths + 4*packedTexts

	packedBeside = 256 // bytes that the memory needs for its key and its place
)

func pack(a *store.CachedAnswer) packed {
	texts := [packedTexts]string{a.Kind, a.Tenant, a.KeyID, a.Model, a.Provider, a.Served, a.Dropped}
	size := packedHead + len(a.Body)
	for _, text := range texts {
		size += len(text)
	}
	p := make(packed, packedHead, size)
	for i, number := range [packedNumbers]int64{a.Generation, a.CreatedAt.UnixMicro(), a.FreshUntil.UnixMicro(), a.StaleUntil.UnixMicro()} {
		binary.LittleEndian.PutUint64(p[8*i:], uint64(number))
	}
	for i, text := range texts {
		binary.LittleEndian.PutUint32(p[packedLengths+4*i:], uint32(len(text))) // at most store.MaxTextBytes
		p = append(p, text...)
	}
	return append(p, a.Body...)
}

// answer returns the answer, whose body is the packed one's.
func (p packed) answer(key cache.Key) *store.CachedAnswer {
	a := &store.CachedAnswer{
		Key: key, Generation: p.number(packedGeneration),
		CreatedAt: p.time(packedCreated), FreshUntil: p.time(packedFresh), StaleUntil: p.time(packedStale),
	}
	body := packedHead
	var lengths [packedTexts]int
	for i := range lengths {
		lengths[i] = int(binary.LittleEndian.Uint32(p[packedLengths+4*i:]))
		body += lengths[i]
	}
	rest := string(p[packedHead:body])
	for i, text := range [packedTexts]*string{&a.Kind, &a.Tenant, &a.KeyID, &a.Model, &a.Provider, &a.Served, &a.Dropped} {
		*text, rest = rest[:lengths[i]], rest[lengths[i]:]
	}
	a.Body = p[body:]
	return a
}

func (p packed) number(i int) int64 { return int64(binary.LittleEndian.Uint64(p[8*i:])) }

func (p packed) time(i int) time.Time { return time.UnixMicro(p.number(i)).UTC() }

// weight is how many bytes the answer takes in memory.
func (p packed) weight() uint32 { return uint32(len(p) + packedBeside) } // at most store.MaxCachedBytes and a little
