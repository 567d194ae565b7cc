package storetest

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/store"
)

// newLine returns a line of the batch in which everything is set that a new one has.
func newLine(batchID string, line int) store.Job {
	j := newJob(fmt.Sprintf("%s-%04d", batchID, line))
	j.BatchID, j.Line, j.CustomID, j.Lane = batchID, line, fmt.Sprintf("row-%d", line), inference.LaneBatch
	j.Epoch, j.LeasedUntil, j.Webhook = 0, time.Time{}, nil
	return j
}

func newLines(batchID string, from, to int) []store.Job {
	var lines []store.Job
	for i := from; i <= to; i++ {
		lines = append(lines, newLine(batchID, i))
	}
	return lines
}

func addLines(t *testing.T, s store.Store, id string, lines ...store.Job) {
	t.Helper()
	require.NoError(t, s.AddLines(t.Context(), owner, id, lines, int64(lines[len(lines)-1].Line*100), nil))
}

// running makes a batch in progress with so many lines.
func running(t *testing.T, s store.Store, id string, lines int) {
	t.Helper()
	createBatch(t, s, id)
	addLines(t, s, id, newLines(id, 1, lines)...)
	require.NoError(t, s.BeginBatch(t.Context(), owner, id, noon))
}

func leaseLines(t *testing.T, s store.Store, id string, now time.Time, limit int) []store.Job {
	t.Helper()
	lines, err := s.LeaseLines(t.Context(), id, now, lease, limit)
	require.NoError(t, err)
	return lines
}

// finishLine ends a line as its worker says, with a status of HTTP.
func finishLine(t *testing.T, s store.Store, id string, status int) {
	t.Helper()
	end := newEnd(id)
	end.Record.Status, end.ExpiresAt = status, time.Time{}
	if status >= 300 {
		end.Status = store.JobFailed
	}
	news, err := s.FinishJobs(t.Context(), []store.JobEnd{end})
	require.NoError(t, err)
	require.Len(t, news, 1)
}

func lineNumbers(lines []store.Job) []int {
	numbers := make([]int, len(lines))
	for i, j := range lines {
		numbers[i] = j.Line
	}
	return numbers
}

func lineIDs(t *testing.T, s store.Store, id string) []store.LineID {
	t.Helper()
	ids, err := s.LineIDs(t.Context(), id, 0, store.MaxLineIDs)
	require.NoError(t, err)
	return ids
}

func backlogs(t *testing.T, s store.Store) []store.Backlog {
	t.Helper()
	b, err := s.Backlogs(t.Context())
	require.NoError(t, err)
	return b
}

var batchLineTests = map[string]func(*testing.T, Open){
	"lines come with what was read of the file, and come back as they were stored": func(t *testing.T, open Open) {
		s := migrated(t, open)
		b := newBatch("batch_1")
		b.Model = ""
		require.NoError(t, s.CreateBatch(t.Context(), b))
		lines := newLines("batch_1", 1, 3)
		require.NoError(t, s.AddLines(t.Context(), owner, "batch_1", lines[:2], 200, nil))
		require.NoError(t, s.AddLines(t.Context(), owner, "batch_1", lines[2:], 300, nil))
		b.Total, b.ReadBytes, b.Model = 3, 300, "fast"
		require.Equal(t, b, batch(t, open(), "batch_1"))
		require.Equal(t, []store.LineID{{Line: 1, CustomID: "row-1"}, {Line: 2, CustomID: "row-2"}, {Line: 3, CustomID: "row-3"}}, lineIDs(t, s, "batch_1"))
		ids, err := s.LineIDs(t.Context(), "batch_1", 1, 1)
		require.NoError(t, err)
		require.Equal(t, []store.LineID{{Line: 2, CustomID: "row-2"}}, ids)

		require.Empty(t, leaseLines(t, s, "batch_1", noon, 10), "nothing is called before all of the file was read")
		require.NoError(t, s.BeginBatch(t.Context(), owner, "batch_1", noon))
		got := leaseLines(t, s, "batch_1", noon, 10)
		for i := range lines {
			lines[i].LeasedUntil = noon.Add(lease)
		}
		require.Equal(t, lines, got)
		_, err = s.Job(t.Context(), "acme", lines[0].ID)
		require.ErrorIs(t, err, store.ErrNotFound, "a line is no job of its own")
	},

	"lines that come again are left out": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createBatch(t, s, "batch_1")
		fault := []store.BatchFault{{Code: "invalid_json_line", Message: "no", Line: 3}}
		for range 2 {
			require.NoError(t, s.AddLines(t.Context(), owner, "batch_1", newLines("batch_1", 1, 2), 300, fault))
		}
		again := newLine("batch_1", 2)
		again.ID, again.CustomID = "another id", "other"
		require.NoError(t, s.AddLines(t.Context(), owner, "batch_1", []store.Job{again, newLine("batch_1", 4)}, 250, nil))
		b := batch(t, s, "batch_1")
		require.Equal(t, 3, b.Total)
		require.EqualValues(t, 300, b.ReadBytes, "what was read was read")
		require.Equal(t, fault, b.Faults)
		require.Equal(t, []store.LineID{{Line: 1, CustomID: "row-1"}, {Line: 2, CustomID: "row-2"}, {Line: 4, CustomID: "row-4"}}, lineIDs(t, s, "batch_1"))
	},

	"the first hundred faults are kept": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createBatch(t, s, "batch_1")
		var want []store.BatchFault
		for i := range store.MaxFaults + 20 {
			want = append(want, store.BatchFault{Code: "duplicate_custom_id", Message: "m \"é\"", Param: "custom_id", Line: i + 1})
		}
		require.NoError(t, s.AddLines(t.Context(), owner, "batch_1", nil, 10, want[:60]))
		require.NoError(t, s.AddLines(t.Context(), owner, "batch_1", nil, 20, want[60:]))
		require.Equal(t, want[:store.MaxFaults], batch(t, s, "batch_1").Faults)
		require.NoError(t, s.FailBatch(t.Context(), owner, "batch_1", noon, noon))
		require.Equal(t, want[:store.MaxFaults], batch(t, s, "batch_1").Faults)

		createBatch(t, s, "batch_2")
		require.NoError(t, s.AddLines(t.Context(), owner, "batch_2", nil, 0, []store.BatchFault{{Code: "c\x00", Message: strings.Repeat("m", 600)}}))
		require.Equal(t, []store.BatchFault{{Code: "c", Message: strings.Repeat("m", store.MaxTextBytes)}}, batch(t, s, "batch_2").Faults)
	},

	"lines are stored together or not at all": func(t *testing.T, open Open) {
		s := migrated(t, open)
		want := createBatch(t, s, "batch_1")
		createJobs(t, s, newJob("taken"))
		for name, change := range map[string]func(*store.Job){
			"no custom id":       func(j *store.Job) { j.CustomID = "" },
			"custom id too long": func(j *store.Job) { j.CustomID = strings.Repeat("x", store.MaxTextBytes+1) },
			"no line":            func(j *store.Job) { j.Line = 0 },
			"another's":          func(j *store.Job) { j.Tenant = "other" },
			"no body":            func(j *store.Job) { j.Body = nil },
			"too much":           func(j *store.Job) { j.Body = make([]byte, store.MaxInlineBytes) },
		} {
			lines := newLines("batch_1", 1, 2)
			change(&lines[1])
			err := s.AddLines(t.Context(), owner, "batch_1", lines, 200, nil)
			require.ErrorIs(t, err, store.ErrInvalid, name)
		}
		err := s.AddLines(t.Context(), owner, "batch_1", newLines("batch_1", 1, store.MaxLines+1), 200, nil)
		require.ErrorIs(t, err, store.ErrInvalid)
		lines := newLines("batch_1", 1, 2)
		lines[1].ID = "taken"
		require.ErrorIs(t, s.AddLines(t.Context(), owner, "batch_1", lines, 200, nil), store.ErrDuplicate)
		require.Equal(t, want, batch(t, s, "batch_1"))
		require.Empty(t, lineIDs(t, s, "batch_1"))
	},

	"lines are leased in their order, and kept from others until the lease runs out": func(t *testing.T, open Open) {
		s := migrated(t, open)
		running(t, s, "batch_1", 5)
		running(t, s, "batch_2", 1)
		require.Equal(t, []int{1, 2}, lineNumbers(leaseLines(t, s, "batch_1", noon, 2)))
		require.Equal(t, []int{3, 4, 5}, lineNumbers(leaseLines(t, open(), "batch_1", noon, 10)))
		require.Empty(t, leaseLines(t, s, "batch_1", noon.Add(lease-time.Microsecond), 10))
		require.Empty(t, leaseLines(t, s, "batch_1", noon.Add(lease), 0))
		send(t, s, "batch_1-0002")
		again := leaseLines(t, s, "batch_1", noon.Add(lease), 10)
		require.Equal(t, []int{1, 3, 4, 5}, lineNumbers(again), "but what has a message")
		for _, j := range again {
			require.Equal(t, inference.EpochStride, j.Epoch, "it may have been published")
		}
		require.Equal(t, []int{1}, lineNumbers(leaseLines(t, s, "batch_2", noon, 10)))
		require.Empty(t, leaseLines(t, s, "nobody's", noon, 10))
	},

	"a line that is to be published again later waits until then": func(t *testing.T, open Open) {
		s := migrated(t, open)
		running(t, s, "batch_1", 1)
		leaseLines(t, s, "batch_1", noon, 1)
		send(t, s, "batch_1-0001")
		later := noon.Add(time.Minute)
		requeue(t, s, store.Requeue{ID: "batch_1-0001", NotBefore: later})
		require.Equal(t, 1, backlogs(t, s)[0].Waiting)
		require.Empty(t, leaseLines(t, s, "batch_1", later.Add(-time.Microsecond), 1))
		got := leaseLines(t, s, "batch_1", later, 1)
		require.Len(t, got, 1)
		require.Equal(t, inference.EpochStride, got[0].Epoch)
	},

	"a lease on lines is bounded in bytes and number, but never empty": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createBatch(t, s, "batch_1")
		for i, size := range []int{store.MaxLeaseBytes / 2, store.MaxLeaseBytes / 2, 1, store.MaxLeaseBytes + 1, 1} {
			j := newLine("batch_1", i+1)
			j.Body = bytes.Repeat([]byte{0, 0xff, '\'', '\\'}, size)[:size]
			addLines(t, s, "batch_1", j)
		}
		require.NoError(t, s.BeginBatch(t.Context(), owner, "batch_1", noon))
		for _, want := range [][]int{{1, 2}, {3}, {4}, {5}, {}} {
			require.Equal(t, want, lineNumbers(leaseLines(t, s, "batch_1", noon, 10)))
		}

		createBatch(t, s, "batch_2")
		addLines(t, s, "batch_2", newLines("batch_2", 1, store.MaxLines)...)
		addLines(t, s, "batch_2", newLine("batch_2", store.MaxLines+1))
		require.NoError(t, s.BeginBatch(t.Context(), owner, "batch_2", noon))
		require.Len(t, leaseLines(t, s, "batch_2", noon, 9999), store.MaxLines)
		require.Len(t, leaseLines(t, s, "batch_2", noon, 9999), 1)
	},

	"a backlog says what waits and what is out": func(t *testing.T, open Open) {
		s := migrated(t, open)
		running(t, s, "batch_1", 10)
		createBatch(t, s, "validating")
		addLines(t, s, "validating", newLine("validating", 1))
		running(t, s, "cancelled", 1)
		_, err := s.CancelBatch(t.Context(), "acme", "cancelled", noon)
		require.NoError(t, err)
		running(t, s, "batch_2", 2)

		want := store.Backlog{BatchID: "batch_1", Tenant: "acme", Waiting: 10, CreatedAt: newBatch("").CreatedAt, ExpiresAt: newBatch("").ExpiresAt}
		second := want
		second.BatchID, second.Waiting = "batch_2", 2
		require.Equal(t, []store.Backlog{want, second}, backlogs(t, s))

		leaseLines(t, s, "batch_1", time.Now(), 2)
		leaseLines(t, s, "batch_1", noon, 1)
		want.Waiting, want.Out = 8, 2
		require.Equal(t, want, backlogs(t, s)[0], "a lease that ran out is none")
		send(t, s, "batch_1-0001")
		require.Equal(t, want, backlogs(t, s)[0])
		send(t, s, "batch_1-0003")
		want.Waiting, want.Out = 7, 3
		require.Equal(t, want, backlogs(t, s)[0])
		finishLine(t, s, "batch_1-0001", 200)
		want.Out = 2
		require.Equal(t, want, backlogs(t, s)[0], "what is finished is neither")
	},
}
