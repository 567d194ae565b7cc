package queue

import (
	"time"

	"sluice/internal/inference"
)

const (
	// minRecord is the least that one record takes in a frame.
	minRecord = 20

	// minTry is the least that one try of a record takes.
	minTry = 5
)

// What stands first in a frame of records, which waits in a file while processes of two
// versions run: costVersion if a record says what it cost or that it came from the cache,
// else triesVersion if a record says which tries failed, else recordVersion, which is the
// cheapest form. Older processes put a frame of a form that they do not know among the dead
// letters, whole; this process reads all.
const (
	recordVersion = 1
	triesVersion  = 2
	costVersion   = 3 // with tries, too
)

// How a record's cost is said.
const (
	costUnknown  = iota // nobody has found it out
	costUnpriced        // there is no price for it
	costPriced          // it follows
)

// encodeRecords frames usage records. There is one for every request, so it is worth
// a form that costs next to nothing.
func encodeRecords(records []inference.Record) []byte {
	w := newFrame(16 + 256*len(records))
	var texts map[string]int
	w.b[0] = versionFor(records)
	if w.b[0] >= triesVersion {
		texts = make(map[string]int)
	}
	w.int(len(records))
	for i := range records {
		w.record(&records[i])
		if w.b[0] >= triesVersion {
			w.tries(records[i].Tries, texts)
		}
		if w.b[0] >= costVersion {
			w.cost(&records[i])
		}
	}
	return w.b
}

// versionFor returns the oldest form that can hold the records.
func versionFor(records []inference.Record) byte {
	version := byte(recordVersion)
	for i := range records {
		if records[i].Cache != "" || records[i].Costed {
			return costVersion
		}
		if len(records[i].Tries) > 0 {
			version = triesVersion
		}
	}
	return version
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

func (w *writer) cost(r *inference.Record) {
	w.str(string(r.Cache))
	switch {
	case !r.Costed:
		w.int(costUnknown)
	case !r.Priced:
		w.int(costUnpriced)
	default:
		w.int(costPriced)
		w.uint(uint64(max(r.Cost, 0)))
	}
}

// tries frames the last MaxTries tries. Their texts are nearly always those of the try
// before: a text that the frame has already is named by its number in texts, so that
// an outage, in which every record has tries, still fits in a message.
func (w *writer) tries(tries []inference.Try, texts map[string]int) {
	tries = tries[max(len(tries)-inference.MaxTries, 0):]
	w.int(len(tries))
	for i := range tries {
		t := &tries[i]
		for _, s := range [...]string{t.Provider, t.Model, string(t.Code)} {
			n := texts[s]
			w.int(n)
			if n == 0 {
				texts[s] = len(texts) + 1
				w.str(s)
			}
		}
		w.int(t.Status)
		w.dur(t.Took)
	}
}

func decodeRecords(b []byte) ([]inference.Record, error) {
	r := &reader{}
	version := byte(0)
	if len(b) > 0 {
		version = b[0]
	}
	if version >= recordVersion && version <= costVersion {
		r.b = b[1:]
	} else {
		r.fail()
	}
	records := make([]inference.Record, 0, r.count(minRecord))
	var texts []string
	for range cap(records) {
		rec := r.record()
		if version >= triesVersion {
			rec.Tries = r.tries(&texts)
		}
		if version >= costVersion {
			r.cost(&rec)
		}
		records = append(records, rec)
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

func (r *reader) cost(rec *inference.Record) {
	rec.Cache = inference.CacheUse(r.str())
	switch r.int() {
	case costUnknown:
	case costUnpriced:
		rec.Costed = true
	case costPriced:
		rec.Costed, rec.Priced, rec.Cost = true, true, inference.Cost(r.uint()&(1<<63-1))
	default:
		r.fail()
	}
}

// tries returns nil for a record without any. texts are those that the frame had so
// far; it adds to them.
func (r *reader) tries(texts *[]string) []inference.Try {
	n := r.count(minTry)
	if n > inference.MaxTries {
		r.fail()
		return nil
	}
	if n == 0 {
		return nil
	}
	tries := make([]inference.Try, 0, n)
	for range n {
		tries = append(tries, inference.Try{
			Provider: r.tryText(texts), Model: r.tryText(texts), Code: inference.ErrorCode(r.tryText(texts)),
			Status: r.int(), Took: r.dur(),
		})
	}
	return tries
}

func (r *reader) tryText(texts *[]string) string {
	n := r.int()
	if n > len(*texts) {
		r.fail()
		return ""
	}
	if n > 0 {
		return (*texts)[n-1]
	}
	s := r.str()
	*texts = append(*texts, s)
	return s
}
