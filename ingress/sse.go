package ingress

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
)

// eventID names a place in a streamed answer: "<epoch>-<delivery>-<sequence number>".
// It is what a client sends back as Last-Event-ID.
type eventID struct {
	run queue.Run
	seq uint64
}

func appendEventID(dst []byte, id eventID) []byte {
	dst = strconv.AppendInt(dst, int64(id.run.Epoch), 10)
	dst = append(dst, '-')
	dst = strconv.AppendInt(dst, int64(id.run.Delivery), 10)
	dst = append(dst, '-')
	return strconv.AppendUint(dst, id.seq, 10)
}

func parseEventID(s string) (eventID, bool) {
	parts := strings.Split(s, "-")
	if len(s) > 64 || len(parts) != 3 {
		return eventID{}, false
	}
	epoch, err1 := strconv.ParseUint(parts[0], 10, 31)
	delivery, err2 := strconv.ParseUint(parts[1], 10, 31)
	seq, err3 := strconv.ParseUint(parts[2], 10, 63)
	if err1 != nil || err2 != nil || err3 != nil {
		return eventID{}, false
	}
	return eventID{run: queue.Run{Epoch: int(epoch), Delivery: int(delivery)}, seq: seq}, true
}

// sseWriter writes one streamed answer.
type sseWriter struct {
	w        http.ResponseWriter
	ctrl     *http.ResponseController
	buf      []byte
	extended time.Time  // when the write deadline was last put off
	head     bool       // the response's head is out
	begun    bool       // a part of the answer is
	late     *flight    // whose headers follow as trailers, because the head went out too early for them
	cached   *cacheCall // as late
}

func newSSEWriter(w http.ResponseWriter) *sseWriter {
	return &sseWriter{w: w, ctrl: http.NewResponseController(w)}
}

// limitWrite bounds how long a client may take to accept the answer. Not every writer
// has deadlines; the server's does, and forgets this one with the request.
func limitWrite(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeMost))
}

// writeMost is how long a client may take to accept one write before it is cut off; it
// is put off now and then, not at every write, so it may be a quarter less.
const writeMost = 2 * time.Minute

const eventStream = "text/event-stream"

// begin sets the headers of an event stream; the first flush sends them.
func (s *sseWriter) begin() {
	h := s.w.Header()
	h.Set("Content-Type", eventStream+"; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Accel-Buffering", "no") // asks nginx to pass on what comes when it comes
	s.head = true
}

// chunks writes chunks that follow each other, in one write.
func (s *sseWriter) chunks(b batch) error {
	s.begun = s.begun || len(b.Chunks) > 0
	var id [64]byte
	for i, c := range b.Chunks {
		s.buf = append(s.buf, "id: "...)
		s.buf = append(s.buf, appendEventID(id[:0], eventID{b.Run, b.First + uint64(i)})...)
		s.buf = append(s.buf, '\n')
		s.buf = openaiapi.AppendEvent(s.buf, "", c)
	}
	return s.flush()
}

// done writes the end of a complete answer.
func (s *sseWriter) done(b batch) error {
	s.trailers()
	s.buf = openaiapi.AppendEvent(s.buf, string(appendEventID(nil, eventID{b.Run, b.First})), []byte(openaiapi.Done))
	return s.flush()
}

// fail writes the end of an answer that is not complete. No [DONE] follows it. An end
// that is the job's own has an id, as [DONE] would have; behind any other there may be
// more to read.
func (s *sseWriter) fail(e *inference.Error, details map[string]any, b batch) error {
	s.trailers()
	id := ""
	if b.End != nil {
		id = string(appendEventID(nil, eventID{b.Run, b.First}))
	}
	s.buf = openaiapi.AppendEvent(s.buf, id, errorJSON(e, details))
	return s.flush()
}

// trailers tells at the end what the head could not.
func (s *sseWriter) trailers() {
	s.cached.late(s.w.Header())
	if s.late == nil {
		return
	}
	f := s.late
	f.mu.Lock()
	defer f.mu.Unlock()
	h := s.w.Header()
	h.Set(http.TrailerPrefix+"X-Sluice-Attempts", strconv.Itoa(f.first.attempts+f.lostRuns))
	tellDropped(h, http.TrailerPrefix+droppedHeader, f.first.dropped)
	tellTries(h, http.TrailerPrefix+triesHeader, f.first.tries)
	h.Set(http.TrailerPrefix+"X-Sluice-Provider", f.at().Provider)
	h.Set(http.TrailerPrefix+"X-Sluice-Queue-Ms", strconv.FormatInt(max(f.first.after-f.first.elapsed, 0).Milliseconds(), 10))
}

// comment writes a line that readers ignore.
func (s *sseWriter) comment(text string) error {
	s.buf = openaiapi.AppendComment(s.buf, text)
	return s.flush()
}

func (s *sseWriter) flush() error {
	if now := time.Now(); now.Sub(s.extended) > writeMost/4 {
		s.extended = now
		_ = s.ctrl.SetWriteDeadline(now.Add(writeMost)) // not every writer has deadlines; the server's does
	}
	_, err := s.w.Write(s.buf)
	if err == nil {
		err = s.ctrl.Flush()
	}
	s.buf = s.buf[:0]
	if cap(s.buf) > 16<<10 {
		s.buf = nil
	}
	return err
}
