package storetest

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/store"
)

// noon is when the jobs of these tests come in. No clock but the callers' has a say.
var noon = time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)

// newJob returns a job in which everything is set that a new job has.
func newJob(id string) store.Job {
	return store.Job{
		ID:        id,
		RequestID: "req-" + id,
		Tenant:    "acme",
		KeyID:     "key-1",
		KeyName:   "ci",
		Limits:    &limits.Limits{Queued: 3, OnLimit: limits.Queue},
		Kind:      inference.KindChat,
		Model:     "fast",
		Lane:      "background",
		Body:      []byte(`{"model":"fast","messages":[]}`),
		Candidates: []inference.Candidate{
			{Provider: "openai", Model: "gpt-4o-mini", On: inference.ReasonTimeout | inference.ReasonContentRefused},
			{Provider: "gemini", Model: "gemini-2.5-flash"},
		},
		TraceParent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		Metadata:    map[string]string{"run": "7", "имя": "ü \"quoted\" 🤖"},
		Webhook:     []byte(`{"url":"https://example.com/\u00fc",  "events":["job.failed"], "a":"\u0000"}`),
		CreatedAt:   noon.Add(123456 * time.Microsecond),
		Deadline:    noon.Add(time.Hour),
		Status:      store.JobQueued,
		Epoch:       3,
		LeasedUntil: noon.Add(time.Second),
	}
}

// jobAt returns a new job without a lease, for the tests of the dispatcher.
func jobAt(id, tenant string, at time.Time) store.Job {
	j := newJob(id)
	j.Tenant, j.CreatedAt, j.Epoch, j.LeasedUntil = tenant, at, 0, time.Time{}
	return j
}

// newEnd returns an end in which every field is set.
func newEnd(id string) store.JobEnd {
	return store.JobEnd{
		Status:     store.JobCompleted,
		StartedAt:  noon.Add(3 * time.Second),
		FinishedAt: noon.Add(5 * time.Second),
		ExpiresAt:  noon.Add(24 * time.Hour),
		Response:   []byte(`{"id":"chatcmpl-1"}`),
		Record:     newRecord(id),
	}
}

// withoutBodies returns a job as lists show it.
func withoutBodies(j store.Job) store.Job {
	j.Body, j.Response = nil, nil
	return j
}

func createJobs(t *testing.T, s store.Store, jobs ...store.Job) {
	t.Helper()
	for _, j := range jobs {
		require.NoError(t, s.CreateJob(t.Context(), j))
	}
}

// job reads acme's job of that id.
func job(t *testing.T, s store.Store, id string) store.Job {
	t.Helper()
	j, err := s.Job(t.Context(), "acme", id)
	require.NoError(t, err)
	return j
}

func jobIDs(jobs []store.Job) []string {
	ids := make([]string, len(jobs))
	for i, j := range jobs {
		ids[i] = j.ID
	}
	return ids
}

var jobTests = map[string]func(*testing.T, Open){
	"a new job comes back as it was stored": func(t *testing.T, open Open) {
		s := migrated(t, open)
		want := newJob("job-1")
		createJobs(t, s, want)
		require.Equal(t, want, job(t, open(), "job-1"), "for another process too")
	},

	"every field of a finished job comes back": func(t *testing.T, open Open) {
		s := migrated(t, open)
		want, end := newJob("job-1"), newEnd("job-1")
		createJobs(t, s, want)
		require.Empty(t, mark(t, s, noon.Add(2*time.Second), store.Dispatch{ID: "job-1", Epoch: 3, Provider: "azure", Seq: 1 << 62}))
		_, err := s.FinishJobs(t.Context(), []store.JobEnd{end})
		require.NoError(t, err)

		want.LeasedUntil = time.Time{}
		want.DispatchedAt, want.Provider, want.Seq = noon.Add(2*time.Second), "azure", 1<<62
		want.Status, want.StartedAt, want.FinishedAt, want.ExpiresAt = store.JobCompleted, end.StartedAt, end.FinishedAt, end.ExpiresAt
		want.Response, want.ResponseStatus, want.ErrorCode = end.Response, 502, inference.CodeUpstreamCut
		want.Attempts, want.Tries, want.Usage = end.Record.Attempts, end.Record.Tries, end.Record.Usage
		want.ProviderServed, want.ModelServed = "openai", "gpt-4o-mini-2024-07-18"
		got := job(t, s, "job-1")
		require.Equal(t, want, got)

		got.LeasedUntil, got.NotBefore = noon, noon             // none of a finished job
		got.BatchID, got.Line, got.CustomID = "batch_1", 1, "a" // of a line alone
		requireNoZeroField(t, reflect.ValueOf(got))
	},

	"a bare job comes back bare": func(t *testing.T, open Open) {
		s := migrated(t, open)
		bare := store.Job{
			ID: "bare", Tenant: "acme", Body: []byte("{}"), CreatedAt: noon, Status: store.JobQueued,
			Candidates: []inference.Candidate{{}},
		}
		createJobs(t, s, bare)
		require.Equal(t, bare, job(t, s, "bare"))

		_, err := s.FinishJobs(t.Context(), []store.JobEnd{{
			Status: store.JobFailed, FinishedAt: noon,
			Record: inference.Record{JobID: "bare", Usage: inference.Usage{PromptTokens: 9}},
		}})
		require.NoError(t, err)
		bare.Status, bare.FinishedAt = store.JobFailed, noon
		require.Equal(t, bare, job(t, s, "bare"), "counts that nobody knows are not stored")
	},

	"a new job has no course behind it": func(t *testing.T, open Open) {
		s := migrated(t, open)
		j := newJob("job-1")
		j.Status, j.DispatchedAt, j.Provider, j.Seq = store.JobCompleted, noon, "openai", 7
		j.StartedAt, j.FinishedAt, j.ExpiresAt = noon, noon, noon
		j.Response, j.ResponseStatus, j.Attempts, j.ErrorCode = []byte("{}"), 200, 3, "x"
		createJobs(t, s, j)
		require.Equal(t, newJob("job-1"), job(t, s, "job-1"))
	},

	"times come back in UTC and whole microseconds, texts as they can be stored": func(t *testing.T, open Open) {
		s := migrated(t, open)
		j := newJob("job-1")
		east := time.FixedZone("east", 5*3600)
		j.CreatedAt = time.Date(2025, 6, 2, 3, 0, 0, 1999, east)
		j.Deadline, j.LeasedUntil = j.CreatedAt.Add(time.Hour), j.CreatedAt.Add(time.Minute)
		long := strings.Repeat("é", 1<<10)
		j.RequestID, j.KeyID, j.KeyName, j.Model, j.TraceParent = "a\x00b", "\xff", long, "'; DROP TABLE jobs; --\x00", long
		j.Kind, j.Lane = "\x00", "nul\x00"
		j.Candidates = []inference.Candidate{{Provider: "p\x00", Model: "m\xff"}}
		j.Metadata = map[string]string{"k\x00": "v\x00", "not \xff": long}
		createJobs(t, s, j)
		want, err := j.Clean()
		require.NoError(t, err)
		require.Equal(t, want, job(t, s, "job-1"))
		require.Equal(t, time.Date(2025, 6, 1, 22, 0, 0, 1000, time.UTC), want.CreatedAt)
		require.Equal(t, map[string]string{"k": "v", "not \uFFFD": long[:store.MaxTextBytes]}, want.Metadata)
		require.Equal(t, "p\x00", j.Candidates[0].Provider, "the caller's job stays as it was")
	},

	"bodies are stored byte by byte": func(t *testing.T, open Open) {
		s := migrated(t, open)
		j, end := newJob("long"), newEnd("long")
		j.Body = bytes.Repeat([]byte{0, 0xff, '\'', '\\'}, 2<<20)
		end.Response = bytes.Repeat([]byte{'\\', 0xfe, 0, 'x'}, 2<<20)
		createJobs(t, s, j)
		_, err := s.FinishJobs(t.Context(), []store.JobEnd{end})
		require.NoError(t, err)
		got := job(t, s, "long")
		require.True(t, bytes.Equal(j.Body, got.Body))
		require.True(t, bytes.Equal(end.Response, got.Response))
	},

	"a job that cannot be stored is refused": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for name, change := range map[string]func(*store.Job){
			"no id":              func(j *store.Job) { j.ID = "" },
			"id not text":        func(j *store.Job) { j.ID = "a\x00" },
			"id too long":        func(j *store.Job) { j.ID = strings.Repeat("x", store.MaxTextBytes+1) },
			"no tenant":          func(j *store.Job) { j.Tenant = "" },
			"tenant not text":    func(j *store.Job) { j.Tenant = "\xff" },
			"no time":            func(j *store.Job) { j.CreatedAt = time.Time{} },
			"no body":            func(j *store.Job) { j.Body = nil },
			"body too long":      func(j *store.Job) { j.Body = make([]byte, store.MaxInlineBytes+1) },
			"no candidates":      func(j *store.Job) { j.Candidates = nil },
			"many candidates":    func(j *store.Job) { j.Candidates = make([]inference.Candidate, store.MaxCandidates+1) },
			"webhook no JSON":    func(j *store.Job) { j.Webhook = []byte("{") },
			"webhook no object":  func(j *store.Job) { j.Webhook = []byte(`"https://example.com"`) },
			"webhook no address": func(j *store.Job) { j.Webhook = []byte(`{"url":"ftp://example.com"}`) },
			"webhook no event":   func(j *store.Job) { j.Webhook = []byte(`{"url":"https://example.com","events":["x"]}`) },
			"webhook too long":   func(j *store.Job) { j.Webhook = append(j.Webhook, bytes.Repeat([]byte(" "), store.MaxWebhookBytes)...) },
			"a line":             func(j *store.Job) { j.BatchID, j.Line = "batch_1", 1 },
			"a line of nothing":  func(j *store.Job) { j.Line = 1 },
			"no line of a batch": func(j *store.Job) { j.BatchID = "batch_1" },
			"too much metadata":  func(j *store.Job) { j.Metadata = manyTexts(store.MaxMetadata + 1) },
			"webhook is nothing": func(j *store.Job) { j.Webhook = []byte{} },
		} {
			j := newJob("wrong")
			change(&j)
			require.ErrorIs(t, s.CreateJob(t.Context(), j), store.ErrInvalid, name)
		}
		jobs, err := s.ListJobs(t.Context(), store.JobFilter{Tenant: "acme"})
		require.NoError(t, err)
		require.Empty(t, jobs)
	},

	"an id is stored once": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, newJob("job-1"))
		second := newJob("job-1")
		second.Tenant, second.Model = "other", "slow"
		require.ErrorIs(t, s.CreateJob(t.Context(), second), store.ErrDuplicate)
		require.Equal(t, newJob("job-1"), job(t, s, "job-1"), "the first one stays")
	},

	"another tenant's job is not there": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, newJob("job-1"))
		for _, c := range [][2]string{{"other", "job-1"}, {"", "job-1"}, {"acme", "job-2"}, {"acme", ""}, {"acme\x00x", "job\xff"}} {
			_, err := s.Job(t.Context(), c[0], c[1])
			require.ErrorIs(t, err, store.ErrNotFound, c)
			if c[1] == "job-1" || c[1] == "job-2" {
				_, _, err = s.CancelJob(t.Context(), c[0], c[1], noon, noon, inference.Record{})
				require.ErrorIs(t, err, store.ErrNotFound, c)
			}
		}
		require.Equal(t, newJob("job-1"), job(t, s, "job-1"))
		_, ids := usage(t, s, store.UsageFilter{})
		require.Empty(t, ids)
	},

	"a filter selects jobs": jobFilters,

	"pages of jobs follow each other without a gap or a repeat": jobPages,
}

func manyTexts(n int) map[string]string {
	texts := make(map[string]string, n)
	for i := range n {
		texts[fmt.Sprint(i)] = ""
	}
	return texts
}

func jobFilters(t *testing.T, open Open) {
	s := migrated(t, open)
	for i, id := range []string{"a", "b", "c", "d"} {
		j := newJob(id)
		j.CreatedAt = noon.Add(time.Duration(i) * time.Minute)
		j.Model = []string{"even", "odd\x00"}[i%2]
		createJobs(t, s, j)
	}
	stranger := newJob("e")
	stranger.Tenant = "other"
	createJobs(t, s, stranger)
	_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("c"), newEnd("b")})
	require.NoError(t, err)
	east := noon.Add(time.Minute).In(time.FixedZone("east", 3*3600))
	cases := map[string]struct {
		filter store.JobFilter
		want   []string
	}{
		"tenant":         {store.JobFilter{}, []string{"d", "c", "b", "a"}},
		"status":         {store.JobFilter{Status: store.JobCompleted}, []string{"c", "b"}},
		"model":          {store.JobFilter{Model: "odd\x00"}, []string{"d", "b"}},
		"all that match": {store.JobFilter{Model: "even", Status: store.JobQueued}, []string{"a"}},
		"none":           {store.JobFilter{Status: store.JobExpired}, []string{}},
		"behind":         {store.JobFilter{After: store.Cursor{CreatedAt: east, JobID: "b"}}, []string{"a"}},
		"limit":          {store.JobFilter{Limit: 2}, []string{"d", "c"}},
		"negative limit": {store.JobFilter{Limit: -1}, []string{"d", "c", "b", "a"}},
		"behind, status": {store.JobFilter{Status: store.JobCompleted, After: store.Cursor{CreatedAt: noon.Add(2 * time.Minute), JobID: "c"}}, []string{"b"}},
	}
	for name, c := range cases {
		c.filter.Tenant = "acme"
		jobs, err := s.ListJobs(t.Context(), c.filter)
		require.NoError(t, err, name)
		require.Equal(t, c.want, jobIDs(jobs), name)
		for _, j := range jobs {
			require.Equal(t, withoutBodies(job(t, s, j.ID)), j, "a list has all but the bodies")
		}
	}
	_, err = s.ListJobs(t.Context(), store.JobFilter{Status: store.JobQueued})
	require.ErrorIs(t, err, store.ErrInvalid, "a filter without a tenant")
}

func jobPages(t *testing.T, open Open) {
	s := migrated(t, open)
	want := map[string]bool{}
	for i := range 20 {
		j := newJob(fmt.Sprintf("job-%d", i))
		j.CreatedAt = j.CreatedAt.Add(time.Duration(i%3) * time.Microsecond)
		want[j.ID] = true
		createJobs(t, s, j)
	}
	filter := store.JobFilter{Tenant: "acme", Limit: 3}
	var last store.Job
	for page := 0; len(want) > 0; page++ {
		jobs, err := s.ListJobs(t.Context(), filter)
		require.NoError(t, err)
		require.NotEmpty(t, jobs, "%d jobs are missing", len(want))
		for _, j := range jobs {
			require.True(t, want[j.ID], "%s came twice, or is none of these", j.ID)
			delete(want, j.ID)
			require.False(t, !last.CreatedAt.IsZero() && j.CreatedAt.After(last.CreatedAt), "newest first")
			last = j
		}
		filter.After = store.JobCursor(last)
		newer := newJob(fmt.Sprintf("newer-%d", page))
		newer.CreatedAt = noon.Add(time.Hour)
		createJobs(t, s, newer)
	}
	jobs, err := s.ListJobs(t.Context(), filter)
	require.NoError(t, err)
	require.Empty(t, jobs)
}
