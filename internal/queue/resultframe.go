package queue

import (
	"time"

	"sluice/internal/inference"
)

// Result is a worker's word on a stored job: how a run ended, or where it passed the job
// on to. Exactly one of End and Passed is set.
type Result struct {
	End    *End    // how it ended; a large answer is a blob that BodyRef names
	Passed *Passed // a message of the next epoch stands elsewhere for the job
	Lost   bool    // with End: the blob with the body was gone, so the job must be dispatched again

	Lane      inference.Lane
	Tenant    string
	Taken     time.Time // when the worker took the job, by its clock
	CreatedAt time.Time // the job's
}

// JobID returns the id of the job that the result is of.
func (r *Result) JobID() string {
	switch {
	case r.End != nil:
		return r.End.JobID
	case r.Passed != nil:
		return r.Passed.JobID
	default:
		return ""
	}
}

// valid reports whether the result says of a job of a stored lane one thing.
func (r *Result) valid() bool {
	return (r.End == nil) != (r.Passed == nil) && (!r.Lost || r.End != nil) && r.Lane.Stored() && ValidJobID(r.JobID())
}

// bytes is how much the result's body takes in memory once all of it is there; most if
// nobody knows.
func (r *Result) bytes(most int) int {
	if r.End == nil {
		return 0
	}
	if r.End.BodyRef != "" && r.End.bodyBytes == 0 {
		return most
	}
	n := len(r.End.Body) + r.End.bodyBytes
	if r.End.Err != nil {
		n += len(r.End.Err.Body)
	}
	return n
}

// encode frames the result. The lane is not in it: the subject tells.
func (r *Result) encode() []byte {
	var inner []byte
	bodyBytes := 0
	if r.End != nil {
		inner, bodyBytes = r.End.encode(), r.End.bodyBytes
	} else {
		inner = r.Passed.encode()
	}
	w := newFrame(128 + len(inner))
	w.str(r.JobID())
	w.str(r.Tenant)
	w.time(r.Taken)
	w.time(r.CreatedAt)
	w.bool(r.Lost)
	w.bool(r.Passed != nil)
	w.int(bodyBytes)
	w.bytes(inner)
	return w.b
}

func decodeResult(lane inference.Lane, b []byte) (*Result, error) {
	r := openFrame(b)
	jobID := r.str()
	res := &Result{Lane: lane, Tenant: r.str(), Taken: r.time(), CreatedAt: r.time(), Lost: r.bool()}
	passed, bodyBytes, inner := r.bool(), r.int(), r.bytes()
	if err := r.end(); err != nil {
		return nil, err
	}
	var err error
	if passed {
		res.Passed, err = decodePassed(jobID, inner)
	} else if res.End, err = decodeEnd(jobID, inner); err == nil {
		res.End.bodyBytes = bodyBytes
	}
	if err == nil && !res.valid() {
		err = errFrame
	}
	if err != nil {
		return nil, err
	}
	return res, nil
}

// time writes microseconds since 1970; zero stands for the zero time.
func (w *writer) time(t time.Time) { w.uint(uint64(max(t.UnixMicro(), 0))) }

func (r *reader) time() time.Time {
	us := int64(r.uint() & (1<<63 - 1))
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
