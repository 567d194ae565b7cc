package queue

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func fullJob() *inference.Job {
	j := testJob(`{"model":"m"}`)
	j.Epoch, j.Attempts, j.Stream, j.IncludeUsage = 3, 2, true, true
	j.Tenant, j.KeyID, j.Model = " a team\r\nX-Evil: 1 ", "config:été/1 ", "org/model name:v1?&="
	j.RunFor = 90 * time.Second
	j.TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	j.Candidates = []inference.Candidate{{Provider: testProvider, Model: "a/b c%2F"}, {Provider: "other", Model: ""}}
	return j
}

// overWire passes a message through the bytes that NATS would carry.
func overWire(t *testing.T, m *nats.Msg) nats.Header {
	t.Helper()
	var b strings.Builder
	b.WriteString("NATS/1.0\r\n")
	for k, vs := range m.Header {
		for _, v := range vs {
			b.WriteString(k + ": " + strings.NewReplacer("\r", " ", "\n", " ").Replace(strings.TrimSpace(v)) + "\r\n")
		}
	}
	b.WriteString("\r\n")
	h, err := nats.DecodeHeadersMsg([]byte(b.String()))
	require.NoError(t, err)
	return h
}

func TestJobMessageRoundTrip(t *testing.T) {
	t.Parallel()
	plain, streamed := testJob("{}"), testJob("{}")
	streamed.Stream = true
	for name, j := range map[string]*inference.Job{"plain": plain, "streamed": streamed, "everything": fullJob()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := jobMessage(j, "")
			got, ref, err := parseJob(m.Subject, overWire(t, m), m.Data)
			require.NoError(t, err)
			require.Empty(t, ref)
			require.Equal(t, j, got)
		})
	}
}

func TestJobMessageNamesItsBlob(t *testing.T) {
	t.Parallel()
	j := testJob("large")
	m := jobMessage(j, "blob-1")
	require.Empty(t, m.Data, "the body does not travel twice")
	_, ref, err := parseJob(m.Subject, m.Header, m.Data)
	require.NoError(t, err)
	require.Equal(t, "blob-1", ref)
	require.Equal(t, j.ID+".0", m.Header.Get(hdrMsgID), "what JetStream drops a second copy by")
}

func TestParseJobRefusesWhatIsNoJob(t *testing.T) {
	t.Parallel()
	tooMany := strings.TrimSpace(strings.Repeat("a/b ", maxCandidates+1))
	for name, c := range map[string]struct{ header, value string }{
		"no id":               {hdrJob, ""},
		"odd id":              {hdrJob, "not-a-job-id"},
		"upper-case id":       {hdrJob, strings.Repeat("A", jobIDLen)},
		"negative epoch":      {hdrEpoch, "-1"},
		"huge epoch":          {hdrEpoch, "99999999999"},
		"attempts":            {hdrAttempts, "many"},
		"run for":             {hdrRunFor, "-1"},
		"run for ever":        {hdrRunFor, "99999999999"},
		"tenant":              {hdrTenant, "%zz"},
		"key":                 {hdrKey, "%zz"},
		"model":               {hdrModel, "%"},
		"created":             {hdrCreated, "yesterday"},
		"deadline":            {hdrDeadline, ""},
		"no candidates":       {hdrCandidates, " "},
		"candidate half":      {hdrCandidates, "acme"},
		"candidate nobody":    {hdrCandidates, "/m"},
		"candidate escape":    {hdrCandidates, "acme/%z"},
		"too many candidates": {hdrCandidates, tooMany},
		"stream":              {hdrStream, "maybe"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := jobMessage(fullJob(), "")
			m.Header.Set(c.header, c.value)
			_, _, err := parseJob(m.Subject, m.Header, m.Data)
			require.ErrorContains(t, err, c.header)
		})
	}
}

func FuzzParseJob(f *testing.F) {
	m := jobMessage(fullJob(), "ref")
	f.Add(m.Subject, m.Header.Get(hdrJob), "1", "2", "acme/m other/n", "a%20b", "chunks", "17", []byte("{}"))
	f.Add("", "", "", "", "", "", "", "", []byte(nil))
	f.Add("job.acme.interactive", m.Header.Get(hdrJob), "-0", "+3", "a/b/c", "%", "chunks+usage", "-9", []byte("x"))
	f.Fuzz(func(t *testing.T, subject, id, epoch, attempts, candidates, text, stream, ms string, body []byte) {
		h := nats.Header{}
		for k, v := range map[string]string{
			hdrJob: id, hdrEpoch: epoch, hdrAttempts: attempts, hdrCandidates: candidates, hdrTenant: text, hdrKey: text,
			hdrModel: text, hdrStream: stream, hdrCreated: ms, hdrDeadline: ms, hdrRequest: "r", hdrKind: "chat",
		} {
			h[k] = []string{v}
		}
		j, _, err := parseJob(subject, h, body)
		if err != nil {
			return
		}
		if len(j.Candidates) == 0 || len(j.Candidates) > maxCandidates || j.Epoch < 0 || j.Attempts < 0 {
			t.Fatalf("accepted a job out of bounds: %+v", j)
		}
		again := jobMessage(j, "")
		got, _, err := parseJob(again.Subject, overWire(t, again), again.Data)
		if err != nil {
			t.Fatalf("parse what was framed: %v", err)
		}
		j.Lane, got.Lane, j.Body, got.Body = "", "", nil, nil // an odd subject is not kept
		if !reflect.DeepEqual(j, got) {
			t.Fatalf("round trip:\n %+v\n %+v", j, got)
		}
	})
}

func fullEnd() *End {
	return &End{
		JobID: "j", Run: Run{1, 2}, Worker: "w", Provider: "p", Model: "m", Elapsed: time.Second, Upstream: time.Millisecond,
		Attempts: 3, Dropped: []string{"seed"}, LastSeq: 9, BodyRef: "ref", Body: []byte("body"),
		Usage: inference.Usage{PromptTokens: 1, CompletionTokens: math.MaxInt64, CachedTokens: 3, ReasoningTokens: 4, Known: true, Estimated: true},
		Err: &inference.Error{
			Code: inference.CodeUpstreamRejected, Message: "no", Param: "model", Refusal: inference.RefusalContext, Retryable: true,
			RetryAfter: time.Minute, Status: 422, Body: []byte(`{"error":{}}`),
		},
	}
}

func fullPassed() *Passed {
	return &Passed{
		JobID: "j", Run: Run{3, 4}, Worker: "w", Attempts: 5, Tries: fullRecord().Tries,
		Next: Place{Seq: 6, Candidates: []inference.Candidate{{Provider: "p", Model: "a/b", On: math.MaxUint8}, {Provider: "q"}}},
	}
}

func fullJudgement() Judgement {
	return Judgement{Verdict: VerdictDrop, Attempts: 3, Tries: fullRecord().Tries}
}

func fullEvents() *Events {
	return &Events{
		JobID: "j", Run: Run{1, 2}, Worker: "w", FirstSeq: math.MaxUint64, Elapsed: time.Hour, Attempts: 2, Dropped: []string{"n", "logit_bias"},
		Tries:  fullRecord().Tries,
		Chunks: [][]byte{[]byte("a"), {}, []byte("ccc")},
	}
}

func fullRecord() inference.Record {
	return inference.Record{
		JobID: "j", RequestID: "r", Kind: inference.KindChat, Tenant: "t", KeyID: "k", ModelAsked: "a", Provider: "p", ModelServed: "m",
		Stream: true, Usage: fullEnd().Usage, Attempts: 3, Outcome: inference.OutcomeAbandoned, Status: 502, ErrorCode: inference.CodeWorkerLost,
		CreatedAt: time.UnixMicro(1_700_000_000_000_001).UTC(), Queue: time.Second, FirstToken: time.Minute, Total: time.Hour,
		Tries: []inference.Try{
			{Provider: "p", Model: "a", Code: inference.CodeUpstreamRateLimited, Status: 429, Took: time.Minute},
			{Provider: "p", Model: "a", Code: inference.CodeUpstreamCut, Took: 1},
			{Provider: "q", Model: ""},
		},
	}
}

func TestFramesRoundTrip(t *testing.T) {
	t.Parallel()
	end, err := decodeEnd("j", fullEnd().encode())
	require.NoError(t, err)
	require.Equal(t, fullEnd(), end)

	success := &End{JobID: "j", Run: Run{0, 1}, Body: []byte("{}")}
	end, err = decodeEnd("j", success.encode())
	require.NoError(t, err)
	require.Equal(t, success, end)

	events, err := decodeEvents("j", fullEvents().encode())
	require.NoError(t, err)
	require.Equal(t, fullEvents(), events)

	j := fullJudgement()
	judged, err := decodeJudgement(j.encode())
	require.NoError(t, err)
	require.Equal(t, j, judged)

	passed, err := decodePassed("j", fullPassed().encode())
	require.NoError(t, err)
	require.Equal(t, fullPassed(), passed)

	c := Claim{JobID: "j", Run: Run{7, 8}, Worker: "w", Place: fullPassed().Next}
	claim, err := decodeClaim("j", c.encode())
	require.NoError(t, err)
	require.Equal(t, c, claim)

	h := &Held{Worker: "w", Jobs: []HeldJob{{JobID: "j1", Run: Run{1, 1}}, {JobID: "j2", Run: Run{0, 300}}}}
	held, err := decodeHeld(h.encode())
	require.NoError(t, err)
	require.Equal(t, h, held)
	plain := len(h.encode())
	h.Jobs[1].Idle = true
	held, err = decodeHeld(h.encode())
	require.NoError(t, err)
	require.Equal(t, h, held)
	require.Len(t, h.encode(), plain+2, "what says nothing of idle jobs is as it was before there were any")
	_, err = decodeHeld(append(h.encode()[:plain], 1, 2))
	require.ErrorIs(t, err, errFrame, "there is no third job")

	rs := []inference.Record{fullRecord(), {JobID: "no tries", CreatedAt: time.UnixMicro(1).UTC()}, fullRecord()}
	records, err := decodeRecords(encodeRecords(rs))
	require.NoError(t, err)
	require.Equal(t, rs, records)

	for _, want := range []*Result{fullResult(), passedResult(), {End: &End{JobID: resultJob, Body: []byte{}}, Lost: true, Lane: inference.LaneBackground}} {
		result, err := decodeResult(want.Lane, want.encode())
		require.NoError(t, err)
		require.Equal(t, want, result)
	}

	ids, err := decodeIDs(encodeIDs([]string{"a", "", "ccc"}))
	require.NoError(t, err)
	require.Equal(t, []string{"a", "", "ccc"}, ids)
}

// Durations and counts below zero come from a clock that was set back; they are said
// as zero, never as something huge.
func TestFramesHoldNoNegativeNumbers(t *testing.T) {
	t.Parallel()
	e := &End{JobID: "j", Elapsed: -time.Second, Attempts: -1, Usage: inference.Usage{PromptTokens: -5}}
	got, err := decodeEnd("j", e.encode())
	require.NoError(t, err)
	require.Zero(t, got.Elapsed)
	require.Zero(t, got.Attempts)
	require.Zero(t, got.Usage.PromptTokens)
}

func TestFramesCutOrLongerAreRefused(t *testing.T) {
	t.Parallel()
	decoders := map[string]struct {
		frame  []byte
		decode func([]byte) error
	}{
		"end":       {fullEnd().encode(), func(b []byte) error { _, err := decodeEnd("j", b); return err }},
		"events":    {fullEvents().encode(), func(b []byte) error { _, err := decodeEvents("j", b); return err }},
		"judgement": {new(fullJudgement()).encode(), func(b []byte) error { _, err := decodeJudgement(b); return err }},
		"passed":    {fullPassed().encode(), func(b []byte) error { _, err := decodePassed("j", b); return err }},
		"claim":     {(&Claim{Worker: "w"}).encode(), func(b []byte) error { _, err := decodeClaim("j", b); return err }},
		"held":      {(&Held{Worker: "w", Jobs: []HeldJob{{"j", Run{1, 1}, false}}}).encode(), func(b []byte) error { _, err := decodeHeld(b); return err }},
		"records":   {encodeRecords([]inference.Record{fullRecord()}), func(b []byte) error { _, err := decodeRecords(b); return err }},
		"cached":    {encodeRecords([]inference.Record{fullRecord(), cachedRecord()}), func(b []byte) error { _, err := decodeRecords(b); return err }},
		"no tries":  {encodeRecords(records(0, 2)), func(b []byte) error { _, err := decodeRecords(b); return err }},
		"result":    {fullResult().encode(), func(b []byte) error { _, err := decodeResult(inference.LaneBatch, b); return err }},
		"ended on":  {passedResult().encode(), func(b []byte) error { _, err := decodeResult(inference.LaneBatch, b); return err }},
		"ids":       {encodeIDs([]string{"a", "b"}), func(b []byte) error { _, err := decodeIDs(b); return err }},
	}
	for name, d := range decoders {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, d.decode(d.frame))
			for n := range d.frame {
				require.ErrorIs(t, d.decode(d.frame[:n]), errFrame, "cut at %d", n)
			}
			require.ErrorIs(t, d.decode(append(bytes.Clone(d.frame), 0)), errFrame, "bytes left over")
			other := bytes.Clone(d.frame)
			other[0]++
			require.ErrorIs(t, d.decode(other), errFrame, "another version")
		})
	}
}

func TestAFrameThatIsNoResultIsRefused(t *testing.T) {
	t.Parallel()
	odd, lost, good := fullResult(), passedResult(), fullResult()
	odd.End.JobID = "j"
	lost.Lost = true
	good.End.Body = make([]byte, 3)
	_, err := decodeResult(inference.LaneBatch, good.encode())
	require.NoError(t, err)
	_, err = decodeResult(inference.LaneInteractive, good.encode())
	require.ErrorIs(t, err, errFrame, "a lane whose jobs nobody stored")
	for name, r := range map[string]*Result{"not a job id": odd, "lost, but passed on": lost} {
		_, err := decodeResult(inference.LaneBatch, r.encode())
		require.ErrorIs(t, err, errFrame, name)
	}
	broken := good.encode()
	broken[len(broken)-1-len(good.End.Body)]++ // the length of the body within the end within the result
	_, err = decodeResult(inference.LaneBatch, broken)
	require.ErrorIs(t, err, errFrame)
}

// Rows wait in the usage stream while processes of two versions run, so one without
// tries has the form that the older version writes and reads.
func TestRecordsWithoutTriesKeepTheOlderForm(t *testing.T) {
	t.Parallel()
	bare := fullRecord()
	bare.Tries = nil
	older := newFrame(64)
	older.b[0] = recordVersion
	older.int(1)
	older.record(&bare)
	require.Equal(t, older.b, encodeRecords([]inference.Record{bare}))
	got, err := decodeRecords(older.b)
	require.NoError(t, err)
	require.Equal(t, []inference.Record{bare}, got)
}

func cachedRecord() inference.Record {
	r := fullRecord()
	r.Tries, r.Cache = nil, inference.CacheStale
	return r
}

// What a record cost, and that it came from the cache, is said in a form that older
// processes do not read, so a frame has it only where there is something to say.
func TestCostsAndTheCacheNeedTheNewestForm(t *testing.T) {
	t.Parallel()
	require.Equal(t, byte(triesVersion), encodeRecords([]inference.Record{fullRecord()})[0])
	priced, free, unpriced := fullRecord(), fullRecord(), fullRecord()
	priced.Cost, priced.Priced, priced.Costed = math.MaxInt64, true, true
	free.Priced, free.Costed = true, true
	unpriced.Costed = true
	hit := inference.Record{JobID: "hit", Cache: inference.CacheHit, CreatedAt: time.UnixMicro(1).UTC()}
	for _, one := range []inference.Record{priced, free, unpriced, cachedRecord(), hit} {
		frame := encodeRecords([]inference.Record{one})
		require.Equal(t, byte(costVersion), frame[0])
		got, err := decodeRecords(frame)
		require.NoError(t, err)
		require.Equal(t, []inference.Record{one}, got)
	}
	rs := []inference.Record{fullRecord(), priced, cachedRecord(), unpriced, hit}
	frame := encodeRecords(rs)
	got, err := decodeRecords(frame)
	require.NoError(t, err)
	require.Equal(t, rs, got)

	for _, version := range []byte{0, costVersion + 1} {
		frame[0] = version
		_, err = decodeRecords(frame)
		require.ErrorIs(t, err, errFrame)
	}
	_, err = decodeRecords(nil)
	require.ErrorIs(t, err, errFrame)
}

func TestOnlyTheLastTriesOfARecordAreFramed(t *testing.T) {
	t.Parallel()
	rec := fullRecord()
	rec.Tries = nil
	for i := range inference.MaxTries + 2 {
		rec.Tries = append(rec.Tries, inference.Try{Provider: "p", Status: i})
	}
	frame := encodeRecords([]inference.Record{rec})
	got, err := decodeRecords(frame)
	require.NoError(t, err)
	require.Equal(t, rec.Tries[2:], got[0].Tries)

	longer := newFrame(64)
	longer.b[0] = triesVersion
	longer.int(1)
	longer.record(&rec)
	longer.int(inference.MaxTries + 1)
	for range inference.MaxTries + 1 {
		longer.b = append(longer.b, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	_, err = decodeRecords(longer.b)
	require.ErrorIs(t, err, errFrame)
}

// An outage in which every request was tried as often as may be does not outgrow a
// message, which would keep the rows from the stream for good.
func TestRecordsFullOfTriesFitInAMessage(t *testing.T) {
	t.Parallel()
	rs := make([]inference.Record, RecordsPerMessage)
	for i := range rs {
		rs[i] = fullRecord()
		rs[i].ModelAsked = strings.Repeat("m", 256)
		rs[i].Tries = make([]inference.Try, inference.MaxTries)
		for n := range rs[i].Tries {
			rs[i].Tries[n] = inference.Try{Provider: "p", Model: rs[i].ModelAsked, Code: inference.CodeUpstreamRateLimited, Status: 429, Took: time.Minute}
		}
	}
	frame := encodeRecords(rs)
	require.Less(t, len(frame), 512<<10)
	got, err := decodeRecords(frame)
	require.NoError(t, err)
	require.Equal(t, rs, got)
}

func TestATextThatTheFrameNeverHadIsRefused(t *testing.T) {
	t.Parallel()
	w := newFrame(64)
	w.b[0] = triesVersion
	w.int(1)
	w.record(&inference.Record{})
	w.int(1)
	w.b = append(w.b, 0, 1, 'p', 2, 0, 0, 0, 0) // the second text of the frame is asked for, and there is one
	_, err := decodeRecords(w.b)
	require.ErrorIs(t, err, errFrame)
}

// forged claims a list of two billion elements.
func forged(before int) []byte {
	w := newFrame(16)
	for range before {
		w.uint(0)
	}
	w.uint(1<<31 - 1)
	return w.b
}

func TestForgedLengthsAllocateNothing(t *testing.T) {
	t.Parallel()
	e, err := decodeEvents("j", forged(6))
	require.ErrorIs(t, err, errFrame)
	require.Zero(t, cap(e.Chunks))
	h, err := decodeHeld(forged(1))
	require.ErrorIs(t, err, errFrame)
	require.Zero(t, cap(h.Jobs))
	ids, err := decodeIDs(forged(0))
	require.ErrorIs(t, err, errFrame)
	require.Zero(t, cap(ids))
}

func blockHeader(end bool) nats.Header {
	h := nats.Header{hdrRun: {"1-2"}}
	if end {
		h[hdrEnd] = []string{"1"}
	}
	return h
}

// blockFrame frames a block with any claims about its content.
func blockFrame(first uint64, count int, packed []byte, end *End) []byte {
	w := newFrame(64)
	w.uint(first)
	w.int(count)
	w.bytes(packed)
	if end != nil {
		w.bytes(end.encode())
	}
	return w.b
}

func packedChunks(chunks ...string) []byte {
	w := writer{}
	for _, c := range chunks {
		w.str(c)
	}
	return s2.Encode(nil, w.b)
}

func TestBlockRoundTripAndRefusals(t *testing.T) {
	t.Parallel()
	b, err := decodeBlock("j", blockHeader(true), blockFrame(4, 2, packedChunks("a", "bb"), fullEnd()), 1<<20)
	require.NoError(t, err)
	require.Equal(t, &Block{Run: Run{1, 2}, FirstSeq: 4, Chunks: [][]byte{[]byte("a"), []byte("bb")}, End: fullEnd()}, b)

	zeros := packedChunks(string(make([]byte, 8<<20))) // a few bytes that unfold to eight megabytes
	for name, c := range map[string]struct {
		h nats.Header
		b []byte
	}{
		"no run":          {nats.Header{}, blockFrame(1, 1, packedChunks("a"), nil)},
		"odd run":         {nats.Header{hdrRun: {"1-x"}}, blockFrame(1, 1, packedChunks("a"), nil)},
		"negative run":    {nats.Header{hdrRun: {"1--2"}}, blockFrame(1, 1, packedChunks("a"), nil)},
		"fewer than said": {blockHeader(false), blockFrame(1, 2, packedChunks("a"), nil)},
		"more than said":  {blockHeader(false), blockFrame(1, 1, packedChunks("a", "b"), nil)},
		"count forged":    {blockHeader(false), blockFrame(1, 1<<30, packedChunks("a"), nil)},
		"unfolds too far": {blockHeader(false), blockFrame(1, 1, zeros, nil)},
		"length forged":   {blockHeader(false), blockFrame(1, 1, []byte{0xff, 0xff, 0xff, 0x1f, 0}, nil)},
		"not packed":      {blockHeader(false), blockFrame(1, 1, []byte{3, 0xff}, nil)},
		"end missing":     {blockHeader(true), blockFrame(1, 1, packedChunks("a"), nil)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := decodeBlock("j", c.h, c.b, 1<<20)
			require.Error(t, err)
		})
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(byte(0), fullEvents().encode())
	f.Add(byte(1), fullEnd().encode())
	f.Add(byte(2), (&Held{Worker: "w", Jobs: []HeldJob{{JobID: "j", Run: Run{1, 1}}}}).encode())
	f.Add(byte(2), (&Held{Worker: "w", Jobs: []HeldJob{{JobID: "j", Run: Run{1, 1}, Idle: true}}}).encode())
	f.Add(byte(3), (&Claim{Worker: "w"}).encode())
	f.Add(byte(4), encodeIDs([]string{"a"}))
	f.Add(byte(5), blockFrame(4, 2, packedChunks("a", "bb"), nil))
	f.Add(byte(6), blockFrame(4, 2, packedChunks("a", "bb"), fullEnd()))
	f.Add(byte(7), encodeRecords([]inference.Record{fullRecord(), {}}))
	f.Add(byte(7), encodeRecords(records(0, 2)))
	f.Add(byte(7), encodeRecords([]inference.Record{cachedRecord(), fullRecord()}))
	f.Add(byte(9), fullPassed().encode())
	f.Add(byte(10), new(fullJudgement()).encode())
	f.Add(byte(11), fullResult().encode())
	f.Add(byte(11), passedResult().encode())
	f.Add(byte(7), forged(0))
	f.Add(byte(0), forged(6))
	f.Add(byte(4), forged(0))
	f.Add(byte(8), gathered(fullEvents(), fullEvents()))
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		const most = 1 << 16
		switch kind % 12 {
		case 11:
			if r, err := decodeResult(inference.LaneBatch, data); err == nil {
				if r.bytes(most) < 0 || !r.valid() {
					t.Fatalf("accepted a result out of bounds: %+v", r)
				}
				again, err := decodeResult(inference.LaneBatch, r.encode())
				requireSame(t, r, again, err)
			}
		case 9:
			if p, err := decodePassed("j", data); err == nil {
				again, err := decodePassed("j", p.encode())
				requireSame(t, p, again, err)
			}
		case 10:
			if j, err := decodeJudgement(data); err == nil {
				again, err := decodeJudgement(j.encode())
				requireSame(t, j, again, err)
			}
		case 0:
			if e, err := decodeEvents("j", data); err == nil {
				again, err := decodeEvents("j", e.encode())
				requireSame(t, e, again, err)
			} else if cap(e.Chunks) > len(data) {
				t.Fatalf("%d bytes made room for %d chunks", len(data), cap(e.Chunks))
			}
		case 1:
			if e, err := decodeEnd("j", data); err == nil {
				again, err := decodeEnd("j", e.encode())
				requireSame(t, e, again, err)
			}
		case 2:
			h, err := decodeHeld(data)
			if cap(h.Jobs) > len(data) {
				t.Fatalf("%d bytes made room for %d jobs", len(data), cap(h.Jobs))
			}
			if err == nil {
				again, err := decodeHeld(h.encode())
				requireSame(t, h, again, err)
			}
		case 3:
			if c, err := decodeClaim("j", data); err == nil {
				again, err := decodeClaim("j", c.encode())
				requireSame(t, c, again, err)
			}
		case 4:
			ids, err := decodeIDs(data)
			if cap(ids) > len(data) {
				t.Fatalf("%d bytes made room for %d ids", len(data), cap(ids))
			}
			if err == nil {
				again, err := decodeIDs(encodeIDs(ids))
				requireSame(t, ids, again, err)
			}
		case 7:
			rs, err := decodeRecords(data)
			if cap(rs) > len(data) {
				t.Fatalf("%d bytes made room for %d records", len(data), cap(rs))
			}
			if err == nil {
				again, err := decodeRecords(encodeRecords(rs))
				requireSame(t, rs, again, err)
			}
		case 8:
			var list []*Events
			err := eachItem(data, func(jobID string, item []byte) error {
				e, err := decodeEvents(jobID, item)
				list = append(list, e)
				return err
			})
			if err != nil {
				return
			}
			n := 0
			err = eachItem(gathered(list...), func(jobID string, item []byte) error {
				e, err := decodeEvents(jobID, item)
				requireSame(t, list[n], e, err)
				n++
				return nil
			})
			if err != nil || n != len(list) {
				t.Fatalf("%d of %d came back: %v", n, len(list), err)
			}
		default:
			b, err := decodeBlock("j", blockHeader(kind%12 == 6), data, most)
			if err != nil {
				return
			}
			size := 0
			for _, c := range b.Chunks {
				size += len(c)
			}
			if size > most || len(b.Chunks) > most {
				t.Fatalf("a block of %d chunks and %d bytes", len(b.Chunks), size)
			}
		}
	})
}

func requireSame(t *testing.T, want, got any, err error) {
	t.Helper()
	if err != nil || !reflect.DeepEqual(want, got) {
		t.Fatalf("round trip: %v\n %+v\n %+v", err, want, got)
	}
}

func TestRunOrder(t *testing.T) {
	t.Parallel()
	require.True(t, Run{0, 9}.Before(Run{1, 1}))
	require.True(t, Run{1, 1}.Before(Run{1, 2}))
	require.False(t, Run{1, 2}.Before(Run{1, 2}))
	require.False(t, Run{2, 1}.Before(Run{1, 2}))
	require.Equal(t, "3-4", runString(Run{3, 4}))
	r, err := parseRun("3-4")
	require.NoError(t, err)
	require.Equal(t, Run{3, 4}, r)
}

func TestIDs(t *testing.T) {
	t.Parallel()
	ingress := NewProcessID()
	require.Len(t, ingress, ingressIDLen)
	require.NotEqual(t, ingress, NewProcessID())

	now := time.UnixMilli(time.Now().UnixMilli())
	id := NewJobID(ingress, now)
	require.True(t, ValidJobID(id), id)
	require.NotEqual(t, id, NewJobID(ingress, now), "two jobs of one millisecond")
	require.Equal(t, ingress, IngressOf(id))
	require.Equal(t, "short", IngressOf("short"))

	for _, bad := range []string{"", "x", id + "a", strings.ToUpper(id), id[:jobIDLen-1] + ".", id[:jobIDLen-1] + "*", id[:jobIDLen-1] + "1"} {
		require.False(t, ValidJobID(bad), bad)
	}
}

func TestPubAckTellsFullFromGone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		m    *nats.Msg
		seq  uint64
		want error
	}{
		"taken":        {&nats.Msg{Data: []byte(`{"stream":"S","seq":7}`)}, 7, nil},
		"duplicate":    {&nats.Msg{Data: []byte(`{"stream":"S","seq":7,"duplicate":true}`)}, 7, nil},
		"full":         {&nats.Msg{Data: []byte(`{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"}}`)}, 0, ErrFull},
		"busy":         {&nats.Msg{Data: []byte(`{"error":{"err_code":10167}}`)}, 0, ErrFull},
		"no memory":    {&nats.Msg{Data: []byte(`{"error":{"err_code":10023}}`)}, 0, ErrFull},
		"other":        {&nats.Msg{Data: []byte(`{"error":{"err_code":10039,"description":"off"}}`)}, 0, ErrNoQueue},
		"no responder": {&nats.Msg{Header: nats.Header{"Status": {"503"}}}, 0, ErrNoQueue},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seq, err := parsePubAck(c.m)
			require.Equal(t, c.seq, seq)
			require.ErrorIs(t, err, c.want)
		})
	}
}
