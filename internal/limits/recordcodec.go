package limits

import (
	"encoding/binary"
	"errors"
	"math"
)

// recordVersion is the first byte of a record.
const recordVersion = 1

var errRecord = errors.New("malformed record")

// encode writes numbers as varints, each list behind its length, and the times of entries
// as what they are later than the one before.
func (r *record) encode() []byte {
	b := make([]byte, 0, 64+8*len(r.entries)+40*len(r.holders))
	b = append(b, recordVersion)
	number := func(v int64) { b = binary.AppendUvarint(b, uint64(max(v, 0))) }
	number(int64(len(r.entries)))
	last := int64(0)
	for _, e := range r.entries {
		number(e.until - last)
		number(e.requests)
		number(e.tokens)
		last = e.until
	}
	number(int64(len(r.holders)))
	for _, h := range r.holders {
		b = binary.BigEndian.AppendUint64(b, h.process)
		b = binary.AppendUvarint(b, h.change)
		number(h.end)
		number(h.hand)
		number(h.concurrent)
		number(h.queued)
		number(h.money)
		number(h.calls)
		number(h.busy)
	}
	for _, s := range r.spent {
		number(s.start)
		number(s.amount)
	}
	return b
}

// decodeRecord reads what encode has written, and nothing else.
func decodeRecord(data []byte) (*record, error) {
	if len(data) == 0 || data[0] != recordVersion {
		return nil, errRecord
	}
	d := decoder{b: data[1:]}
	r := &record{}
	last := int64(0)
	for range d.length(maxEntries) {
		e := entry{add(last, d.number()), d.number(), d.number()}
		if e.until <= last || len(r.entries) > 0 && e.second() == last/1000 {
			return nil, errRecord
		}
		r.entries, last = append(r.entries, e), e.until
	}
	for range d.length(maxHolders) {
		h := holder{process: d.process(), change: d.unsigned(), end: d.number(), hand: d.number()}
		h.gauges = gauges{d.number(), d.number(), d.number(), d.number()}
		h.busy = d.number()
		if r.holder(h.process) != nil || h.calls > h.concurrent || (h.calls > 0) != (h.busy > 0) {
			return nil, errRecord
		}
		r.holders = append(r.holders, h)
	}
	for i := range r.spent {
		r.spent[i] = spent{d.number(), d.number()}
	}
	if d.bad || len(d.b) > 0 {
		return nil, errRecord
	}
	return r, nil
}

// decoder takes values from a record in their order. After the first fault it is bad and
// all are zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) fail() { d.b, d.bad = nil, true }

func (d *decoder) unsigned() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) number() int64 {
	v := d.unsigned()
	if v > math.MaxInt64 {
		d.fail()
		return 0
	}
	return int64(v)
}

func (d *decoder) length(most int64) int64 {
	n := d.number()
	if n > most {
		d.fail()
		return 0
	}
	return n
}

func (d *decoder) process() uint64 {
	if len(d.b) < 8 {
		d.fail()
		return 0
	}
	v := binary.BigEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}
