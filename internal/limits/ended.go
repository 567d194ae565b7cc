package limits

import (
	"hash/fnv"
	"time"
)

// ended are calls of another process that have ended.
type ended struct {
	process uint64
	calls   int64
	end     int64         // of the process's lease, as it was first seen; zero: it was not yet
	look    time.Duration // the record must have been seen after this, since the clock began
}

// maxEnded bounds the processes of whose calls a record is yet to be told. What is
// forgotten costs the time until these calls are surely over.
const maxEnded = maxHolders

// processOf returns the number by which records know the process of an ingress.
func processOf(ingress string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(ingress)) // it never fails
	return max(h.Sum64(), nobody+1)
}

// Ended says that a call has ended of an ingress that is gone. A process that was killed a
// moment ago cannot be told from one that lives: the record is told when its lease has
// passed.
func (l *Limiter) Ended(ingress string, scopes []Scope) {
	process, at := processOf(ingress), l.since()
	if process == l.process {
		return
	}
	for i := range scopes {
		s := &scopes[i]
		if !s.counts() {
			continue
		}
		a, err := l.lock(s.ID)
		if err != nil {
			continue // it counts until it is surely over
		}
		a.touch(s, at)
		a.ended = oweEnd(a.ended, ended{process: process, calls: 1, look: at})
		l.tell(a)
		a.mu.Unlock()
	}
}

// oweEnd adds calls that have ended to those that a record is to be told of.
func oweEnd(list []ended, e ended) []ended {
	for i := range list {
		if has := &list[i]; has.process == e.process {
			has.calls = add(has.calls, e.calls)
			return list
		}
	}
	if len(list) == maxEnded {
		return list
	}
	return append(list, e)
}

// looks reports whether the record has to be seen anew for the calls that have ended
// elsewhere.
func (a *account) looks(at time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.ended {
		if e.look <= at && a.seen < e.look {
			return true
		}
	}
	return false
}

// endedElsewhere takes out those calls which the record can be told of now: their process
// is gone. Those of one that has been heard of meanwhile are dropped, for it lives and counts
// for itself; so are those of which the record knows nothing. The caller holds mu.
func (a *account) endedElsewhere(at time.Duration, early int64) (told []ended) {
	kept := a.ended[:0]
	for _, e := range a.ended {
		h := a.rec.holder(e.process)
		switch {
		case h != nil && h.calls > 0 && h.end <= early:
			told = append(told, e)
		case e.look > at || a.seen < e.look:
			kept = append(kept, e)
		case h == nil || h.calls == 0 || e.end != 0 && h.end > e.end:
		default:
			e.end, e.look = h.end, at+time.Duration(h.end-early)*time.Millisecond
			kept = append(kept, e)
		}
	}
	a.ended = kept
	return told
}

// over takes off calls that have ended of processes that are gone.
func (r *record) over(list []ended, early int64) {
	for _, e := range list {
		if h := r.holder(e.process); h != nil && h.end <= early {
			h.calls = max(h.calls-e.calls, 0)
		}
	}
}
