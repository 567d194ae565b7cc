package queue

import (
	"time"

	"sluice/internal/inference"
)

// minRecord is the least that one record takes in a frame.
const minRecord = 20

// encodeRecords frames usage records. There is one for every request, so it is worth
// a form that costs next to nothing.
func encodeRecords(records []inference.Record) []byte {
	w := newFrame(16 + 256*len(records))
	w.int(len(records))
	for i := range records {
		w.record(&records[i])
	}
	return w.b
}

func (w *writer) record(r *inference.Record) {
	for _, s := range [...]string{
		r.JobID, r.RequestID, string(r.Kind), r.Tenant, r.KeyID, r.ModelAsked, r.Provider, r.ModelServed, string(r.Outcome), string(r.ErrorCode),
	} {
		w.str(s)
	}
	w.bool(r.Stream)
	w.usage(r.Usage)
	w.int(r.Attempts)
	w.int(r.Status)
	w.uint(uint64(max(r.CreatedAt.UnixMicro(), 0)))
	w.dur(r.Queue)
	w.dur(r.FirstToken)
	w.dur(r.Total)
}

func decodeRecords(b []byte) ([]inference.Record, error) {
	r := openFrame(b)
	records := make([]inference.Record, 0, r.count(minRecord))
	for range cap(records) {
		records = append(records, r.record())
	}
	return records, r.end()
}

func (r *reader) record() inference.Record {
	rec := inference.Record{
		JobID: r.str(), RequestID: r.str(), Kind: inference.Kind(r.str()), Tenant: r.str(), KeyID: r.str(), ModelAsked: r.str(),
		Provider: r.str(), ModelServed: r.str(), Outcome: inference.Outcome(r.str()), ErrorCode: inference.ErrorCode(r.str()),
		Stream: r.bool(), Usage: r.usage(), Attempts: r.int(), Status: r.int(),
	}
	rec.CreatedAt = time.UnixMicro(int64(r.uint() & (1<<63 - 1))).UTC()
	rec.Queue, rec.FirstToken, rec.Total = r.dur(), r.dur(), r.dur()
	return rec
}
