package queue

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"sluice/internal/inference"
)

// Headers of a dead letter, beside those of the message that it was.
const (
	hdrReason     = "Sluice-Reason"
	hdrDeliveries = "Sluice-Deliveries"
	hdrSubject    = "Sluice-Subject" // where the message was published
)

// ErrNoLetter says that there is no dead letter of the number.
var ErrNoLetter = errors.New("no such dead letter")

// LetterKind is what a dead letter was.
type LetterKind string

// The kinds of dead letters.
const (
	LetterJob    LetterKind = "job"    // that a worker could not read
	LetterResult LetterKind = "result" // of a stored job, that no ingress could read
	LetterUsage  LetterKind = "usage"  // records that the database will never take
)

// DeadLetter is a message that nobody could do anything with, and why.
type DeadLetter struct {
	Seq        uint64 // its number among the dead letters
	At         time.Time
	Kind       LetterKind
	Provider   string // of a job; "results" and "usage" for the others
	Reason     string
	Deliveries int
	Bytes      int    // of the body that stands in the letter
	BodyRef    string // the blob that holds the body, if it does not
	JobID      string // as it was written: it need not be one
	RequestID  string
	Lane       inference.Lane // of a job; empty: not known

	// Job is what the letter stands for as far as it can be read, with the body unless
	// there is a BodyRef; Unread says why it cannot.
	Job    *inference.Job
	Unread error

	subject string
	data    []byte
}

// Body returns what stands in the letter.
func (l *DeadLetter) Body() []byte { return l.data }

// NewJobID returns the id of the job that the letter becomes: the same one whoever asks, so
// that it becomes one job.
func (l *DeadLetter) NewJobID() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %s", l.Seq, l.At.UnixNano(), l.JobID))
	return idEncoding.EncodeToString(sum[:])[:jobIDLen]
}

func letterOf(m *message) *DeadLetter {
	get := func(name string) string { return m.header.Get(name) }
	l := &DeadLetter{
		Seq: m.seq, At: m.at, Kind: LetterJob, Provider: strings.TrimPrefix(m.subject, deadSubject("")), Reason: get(hdrReason),
		Bytes: len(m.data), BodyRef: get(hdrBody), JobID: get(hdrJob), RequestID: get(hdrRequest), subject: get(hdrSubject), data: m.data,
	}
	l.Deliveries, _ = strconv.Atoi(get(hdrDeliveries)) // zero says that it is not known
	switch {
	case l.subject == usageSubject, l.subject == "" && l.Provider == "usage":
		l.Kind, l.subject = LetterUsage, usageSubject
		return l
	case strings.HasPrefix(l.subject, resultSubject("")), l.subject == "" && l.Provider == "results":
		l.Kind = LetterResult
		return l
	}
	at := l.subject
	for _, lane := range Lanes {
		if at == jobSubject(l.Provider, lane) {
			l.Lane = lane
		}
	}
	if l.Lane == "" {
		at = jobSubject(l.Provider, inference.LaneInteractive) // for the rest to be read
	}
	l.Job, _, l.Unread = parseJob(at, m.header, m.data)
	return l
}

// DeadFilter selects dead letters. Zero fields select everything.
type DeadFilter struct {
	Provider string
	Reason   string // a part of it, in any case
	From, To time.Time
	Before   uint64 // go on behind the letter of this number
	Limit    int
}

func (f DeadFilter) selects(l *DeadLetter) bool {
	return (f.Provider == "" || l.Provider == f.Provider) && strings.Contains(strings.ToLower(l.Reason), strings.ToLower(f.Reason)) &&
		(f.From.IsZero() || !l.At.Before(f.From)) && (f.To.IsZero() || l.At.Before(f.To))
}

// Bounds of the reading of dead letters: how many are asked for at once, and how many are
// looked at for one page.
const (
	lettersAtOnce = 16
	lettersLooked = 8192
)

// DeadLetters returns those that the filter selects, newest first. next is where to go on,
// zero at the end.
func (c *Conn) DeadLetters(ctx context.Context, f DeadFilter) (letters []*DeadLetter, next uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, storedTimeout)
	defer cancel()
	s, err := c.js.Stream(ctx, deadStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("look up %s: %w", deadStream, err)
	}
	first, at := max(s.CachedInfo().State.FirstSeq, 1), s.CachedInfo().State.LastSeq
	if f.Before > 0 {
		at = min(at, f.Before-1)
	}
	for looked := 0; at >= first; {
		page, err := c.lettersDown(ctx, at, first)
		if err != nil {
			return nil, 0, err
		}
		for _, l := range page {
			if l != nil && f.selects(l) {
				if len(letters) == f.Limit {
					return letters, l.Seq + 1, nil
				}
				letters = append(letters, l)
			}
		}
		at -= uint64(len(page))
		if looked += len(page); looked >= lettersLooked {
			return letters, at + 1, nil
		}
	}
	return letters, 0, nil
}

// lettersDown reads the letters from the place down, nil for each that is gone.
func (c *Conn) lettersDown(ctx context.Context, at, first uint64) ([]*DeadLetter, error) {
	n := min(at-first+1, lettersAtOnce)
	questions := make([]*nats.Msg, n)
	for i := range questions {
		questions[i] = &nats.Msg{Subject: "$JS.API.STREAM.MSG.GET." + deadStream, Data: fmt.Appendf(nil, `{"seq":%d}`, at-uint64(i))}
	}
	page := make([]*DeadLetter, n)
	for i, a := range c.exchange(ctx, questions) {
		if a.err != nil {
			return nil, fmt.Errorf("read %s: %w", deadStream, a.err)
		}
		m, err := readMessage(deadStream, a.msg)
		if err != nil {
			return nil, err
		}
		if m != nil {
			page[i] = letterOf(m)
		}
	}
	return page, nil
}

// DeadLetter returns one of them. The error wraps ErrNoLetter.
func (c *Conn) DeadLetter(ctx context.Context, seq uint64) (*DeadLetter, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	page, err := c.lettersDown(ctx, max(seq, 1), max(seq, 1))
	if err != nil {
		return nil, err
	}
	if seq == 0 || page[0] == nil {
		return nil, fmt.Errorf("read dead letter %d: %w", seq, ErrNoLetter)
	}
	return page[0], nil
}

// DropLetter removes a dead letter, if it is there.
func (c *Conn) DropLetter(ctx context.Context, seq uint64) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	reply, err := c.nc.RequestMsgWithContext(ctx, removal(deadStream, seq))
	if err == nil {
		err = removed(reply)
	}
	if err != nil {
		return fmt.Errorf("remove dead letter %d: %w", seq, err)
	}
	return nil
}

// ErrNoWayBack says that a letter does not tell where it came from.
var ErrNoWayBack = errors.New("the letter does not say where it was published")

// HasWayBack reports whether a letter that is no job tells where it came from.
func (l *DeadLetter) HasWayBack() bool {
	known := l.subject == usageSubject
	for _, lane := range storedLanes {
		known = known || l.subject == resultSubject(lane)
	}
	return known
}

// Republish sends a letter that is no job to where it came from. The server drops a second
// copy within two minutes, and whoever takes it stores each job's end and usage once.
func (c *Conn) Republish(ctx context.Context, l *DeadLetter) error {
	if !l.HasWayBack() {
		return fmt.Errorf("republish dead letter %d: %w", l.Seq, ErrNoWayBack)
	}
	m := nats.NewMsg(l.subject)
	m.Header.Set(hdrMsgID, fmt.Sprintf("dead.%d.%d", l.At.UnixNano(), l.Seq))
	m.Data = l.data
	if _, err := c.publishAcked(ctx, m); err != nil {
		return fmt.Errorf("republish dead letter %d: %w", l.Seq, err)
	}
	return nil
}

// CountLetters returns how many dead letters there are of each provider, with those of
// results and usage under these names.
func (c *Conn) CountLetters(ctx context.Context) (map[string]int, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	counts := make(map[string]int)
	info, err := c.streamInfo(ctx, deadStream, deadSubject("*"))
	if err != nil || info == nil {
		return counts, err
	}
	for subject, n := range info.State.Subjects {
		counts[strings.TrimPrefix(subject, deadSubject(""))] = int(n)
	}
	return counts, nil
}
