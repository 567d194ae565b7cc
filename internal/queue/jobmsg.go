package queue

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"sluice/internal/inference"
)

// Headers of a job message. Everything but the body travels in them.
const (
	hdrMsgID      = "Nats-Msg-Id" // JetStream's own: a second publish of it within two minutes is dropped
	hdrJob        = "Sluice-Job"
	hdrRequest    = "Sluice-Request"
	hdrEpoch      = "Sluice-Epoch"
	hdrKind       = "Sluice-Kind"
	hdrTenant     = "Sluice-Tenant"
	hdrKey        = "Sluice-Key"
	hdrModel      = "Sluice-Model"
	hdrStream     = "Sluice-Stream"
	hdrCreated    = "Sluice-Created"
	hdrDeadline   = "Sluice-Deadline"
	hdrCandidates = "Sluice-Candidates"
	hdrAttempts   = "Sluice-Attempts"
	hdrTries      = "Sluice-Tries"
	hdrRunFor     = "Sluice-Run-For" // milliseconds
	hdrTrace      = "Traceparent"
	hdrBody       = "Sluice-Body" // name of the blob that holds the body
)

// The values of hdrStream.
const (
	streamPlain     = "chunks"
	streamWithUsage = "chunks+usage"
)

// maxCandidates bounds the list in one job.
const maxCandidates = 64

// jobMessage frames a job for its first candidate's queue. bodyRef names the blob
// that holds the body, if it does not travel in the message.
func jobMessage(j *inference.Job, bodyRef string) *nats.Msg {
	values := make([]string, 0, 17)
	h := make(nats.Header, 17)
	set := func(k, v string) {
		values = append(values, v)
		h[k] = values[len(values)-1 : len(values) : len(values)]
	}
	set(hdrMsgID, j.ID+"."+strconv.Itoa(j.Epoch))
	set(hdrJob, j.ID)
	set(hdrRequest, j.RequestID)
	set(hdrEpoch, strconv.Itoa(j.Epoch))
	set(hdrKind, string(j.Kind))
	set(hdrTenant, url.QueryEscape(j.Tenant))
	set(hdrKey, url.QueryEscape(j.KeyID))
	set(hdrModel, url.QueryEscape(j.Model))
	set(hdrCreated, strconv.FormatInt(j.CreatedAt.UnixMilli(), 10))
	set(hdrDeadline, strconv.FormatInt(j.Deadline.UnixMilli(), 10))
	set(hdrCandidates, encodeCandidates(j.Candidates))
	if j.Stream && j.IncludeUsage {
		set(hdrStream, streamWithUsage)
	} else if j.Stream {
		set(hdrStream, streamPlain)
	}
	if j.RunFor > 0 {
		set(hdrRunFor, strconv.FormatInt(int64((j.RunFor+time.Millisecond-1)/time.Millisecond), 10)) // zero would be no bound
	}
	if j.Attempts > 0 {
		set(hdrAttempts, strconv.Itoa(j.Attempts))
	}
	if len(j.Tries) > 0 {
		set(hdrTries, encodeTries(j.Tries))
	}
	if j.TraceParent != "" {
		set(hdrTrace, j.TraceParent)
	}
	m := &nats.Msg{Subject: jobSubject(j.Candidate().Provider, j.Lane), Header: h, Data: j.Body}
	if bodyRef != "" {
		set(hdrBody, bodyRef)
		m.Data = nil
	}
	return m
}

// parseJob reads a job message. The lane is the subject's last token. The body is
// not fetched: bodyRef names it when it travels as a blob.
func parseJob(subject string, h nats.Header, body []byte) (j *inference.Job, bodyRef string, err error) {
	get := func(k string) string {
		if v := h[k]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	j = &inference.Job{
		ID: get(hdrJob), RequestID: get(hdrRequest), Kind: inference.Kind(get(hdrKind)),
		Lane: inference.Lane(subject[strings.LastIndexByte(subject, '.')+1:]), TraceParent: get(hdrTrace), Body: body,
	}
	if !ValidJobID(j.ID) {
		return nil, "", fmt.Errorf("header %s: not a job id", hdrJob)
	}
	if j.Epoch, err = headerInt(hdrEpoch, get(hdrEpoch)); err != nil {
		return nil, "", err
	}
	if j.Attempts, err = headerInt(hdrAttempts, get(hdrAttempts)); err != nil {
		return nil, "", err
	}
	runFor, err := headerInt(hdrRunFor, get(hdrRunFor))
	if err != nil {
		return nil, "", err
	}
	j.RunFor = time.Duration(runFor) * time.Millisecond
	if j.Tries, err = parseTries(get(hdrTries)); err != nil {
		return nil, "", err
	}
	if j.Tenant, err = url.QueryUnescape(get(hdrTenant)); err != nil {
		return nil, "", fmt.Errorf("header %s: %w", hdrTenant, err)
	}
	if j.KeyID, err = url.QueryUnescape(get(hdrKey)); err != nil {
		return nil, "", fmt.Errorf("header %s: %w", hdrKey, err)
	}
	if j.Model, err = url.QueryUnescape(get(hdrModel)); err != nil {
		return nil, "", fmt.Errorf("header %s: %w", hdrModel, err)
	}
	if j.CreatedAt, err = headerTime(hdrCreated, get(hdrCreated)); err != nil {
		return nil, "", err
	}
	if j.Deadline, err = headerTime(hdrDeadline, get(hdrDeadline)); err != nil {
		return nil, "", err
	}
	if j.Candidates, err = parseCandidates(get(hdrCandidates)); err != nil {
		return nil, "", err
	}
	switch s := get(hdrStream); s {
	case "":
	case streamPlain, streamWithUsage:
		j.Stream, j.IncludeUsage = true, s == streamWithUsage
	default:
		return nil, "", fmt.Errorf("header %s: unknown value", hdrStream)
	}
	return j, get(hdrBody), nil
}

func headerInt(name, v string) (int, error) {
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("header %s: not a number", name)
	}
	return int(n), nil
}

func headerTime(name, v string) (time.Time, error) {
	ms, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("header %s: not a time in milliseconds", name)
	}
	return time.UnixMilli(ms), nil
}

// Tries are written as a frame in base64.
func encodeTries(tries []inference.Try) string {
	w := newFrame(64 * len(tries))
	w.ownTries(tries)
	return base64.RawStdEncoding.EncodeToString(w.b)
}

func parseTries(s string) ([]inference.Try, error) {
	if s == "" {
		return nil, nil
	}
	b, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("header %s: not in base64", hdrTries)
	}
	r := openFrame(b)
	tries := r.ownTries()
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("header %s: %w", hdrTries, err)
	}
	return tries, nil
}

// Candidates are written as "provider/model provider/model/5", each part escaped, so
// that neither separator can occur inside one. The number is the set of reasons.
func encodeCandidates(cs []inference.Candidate) string {
	var b strings.Builder
	for i, c := range cs {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(url.QueryEscape(c.Provider))
		b.WriteByte('/')
		b.WriteString(url.QueryEscape(c.Model))
		if c.On != 0 {
			b.WriteByte('/')
			b.WriteString(strconv.Itoa(int(c.On)))
		}
	}
	return b.String()
}

func parseCandidates(s string) ([]inference.Candidate, error) {
	parts := strings.Fields(s)
	if len(parts) == 0 || len(parts) > maxCandidates {
		return nil, fmt.Errorf("header %s: %d candidates, want 1 to %d", hdrCandidates, len(parts), maxCandidates)
	}
	cs := make([]inference.Candidate, 0, len(parts))
	for _, p := range parts {
		provider, model, ok := strings.Cut(p, "/")
		model, reasons, some := strings.Cut(model, "/")
		on := uint64(0)
		if some {
			var err error
			if on, err = strconv.ParseUint(reasons, 10, 8); err != nil {
				return nil, fmt.Errorf("header %s: malformed", hdrCandidates)
			}
		}
		provider, err1 := url.QueryUnescape(provider)
		model, err2 := url.QueryUnescape(model)
		if !ok || err1 != nil || err2 != nil || provider == "" {
			return nil, fmt.Errorf("header %s: malformed", hdrCandidates)
		}
		cs = append(cs, inference.Candidate{Provider: provider, Model: model, On: inference.Reasons(on)})
	}
	return cs, nil
}
