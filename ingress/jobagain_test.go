package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// flakyJobs is a real database of which a job cannot be read, or whose word that one is
// stored is lost on the way.
type flakyJobs struct {
	store.Store

	mu            sync.Mutex
	reads, stores error
}

func (f *flakyJobs) fail(reads, stores error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads, f.stores = reads, stores
}

func (f *flakyJobs) failures() (reads, stores error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads, f.stores
}

func (f *flakyJobs) Job(ctx context.Context, tenant, id string) (store.Job, error) {
	if reads, _ := f.failures(); reads != nil {
		return store.Job{}, reads
	}
	return f.Store.Job(ctx, tenant, id)
}

func (f *flakyJobs) CreateJob(ctx context.Context, job store.Job) error {
	err := f.Store.CreateJob(ctx, job)
	if _, stores := f.failures(); err == nil && stores != nil {
		return stores
	}
	return err
}

// againRig is a rig with jobs, batches and keys, whose requests are sent once more.
type againRig struct {
	*jobRig
	flaky *flakyJobs
}

func eachAgain(t *testing.T, test func(*testing.T, *againRig)) {
	t.Helper()
	for name, open := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := open(t)
			t.Cleanup(func() { require.NoError(t, db.Close()) })
			require.NoError(t, db.Migrate(t.Context()))
			flaky := &flakyJobs{Store: db}
			r := setup(t, withJobs(flaky), func(o *Options) {
				o.Idempotency = IdempotencyOptions{Keys: db, Keep: time.Hour}
				o.Files = FileOptions{Rows: db, MaxBytes: 2 << 20, MaxBatchBytes: 1 << 20, MaxTransfers: 4}
				o.Batches = BatchOptions{Store: db, MaxLines: 100, MaxLineBytes: 64 << 10, Window: 50, Retention: time.Hour}
			})
			test(t, &againRig{&jobRig{r, db}, flaky})
		})
	}
}

// lost has the key taken for the request by an ingress that is lost, and returns the id
// of the job that it was to become.
func (r *againRig) lost(key string, q *http.Request, body string, inherits bool) string {
	r.t.Helper()
	id := queue.NewJobID(queue.NewProcessID(), time.Now())
	_, err := r.db.BeginIdempotent(r.t.Context(), store.IdempotentRequest{
		Tenant: "team", KeyID: "key", Key: key, Hash: sameness(q, []byte(body)), Owner: "lost-" + id, JobID: id, Inherits: inherits,
	}, time.Now(), time.Nanosecond, time.Hour)
	require.NoError(r.t, err)
	return id
}

// asked is a request with the key "k" that is to be answered later.
func (r *againRig) asked(prefer string) *http.Request {
	r.t.Helper()
	return r.request(http.MethodPost, r.server.URL+chatPath, plainRequest, "Prefer", prefer, idem, "k")
}

func (r *againRig) accepted(q *http.Request) jobAnswer {
	r.t.Helper()
	resp, text := r.send(q).whole()
	require.Equal(r.t, http.StatusAccepted, resp.StatusCode, text)
	job := parseJob(r.t, text)
	require.Equal(r.t, []string{job.ID, "/v1/jobs/" + job.ID}, []string{resp.Header.Get("X-Sluice-Job-Id"), resp.Header.Get("Location")})
	return job
}

func (r *againRig) one(id string) {
	r.t.Helper()
	jobs, err := r.db.ListJobs(r.t.Context(), store.JobFilter{Tenant: "team"})
	require.NoError(r.t, err)
	require.Len(r.t, jobs, 1)
	require.Equal(r.t, id, store.JobPrefix+jobs[0].ID)
}

func (r *againRig) create(tenant, id string) {
	r.t.Helper()
	require.NoError(r.t, r.db.CreateJob(r.t.Context(), store.Job{
		ID: id, RequestID: "r", Tenant: tenant, Kind: inference.KindChat, Model: "m", Lane: inference.LaneBackground, Body: []byte(plainRequest),
		Candidates: []inference.Candidate{{Provider: "acme", Model: "m"}}, CreatedAt: time.Now(), Deadline: time.Now().Add(time.Hour), Status: store.JobQueued,
	}))
}

func TestAnAcceptedJobIsToldOfWhateverComesOfTheWaiting(t *testing.T) {
	t.Parallel()
	hiccup := errors.New("hiccup")
	eachAgain(t, func(t *testing.T, r *againRig) {
		t.Helper()
		r.flaky.fail(hiccup, nil)
		job := r.accepted(r.asked("respond-async, wait=20"))
		r.one(job.ID)
		r.flaky.fail(nil, nil)
		require.Equal(t, job, r.accepted(r.asked("respond-async, wait=20")), "the answer is replayed")
		r.one(job.ID)
	})
}

// Its client would take the end of the connection for a request that was never taken.
func TestADrainEndsTheWaiting(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	post := r.chat(plainRequest, "Prefer", "respond-async, wait=20")
	require.Eventually(t, func() bool { return len(r.ingress.stored.waiters.ids()) == 1 }, soon, time.Millisecond)
	began := time.Now()
	r.ingress.Drain()
	resp, text := post.whole()
	require.Equal(t, http.StatusAccepted, resp.StatusCode, text)
	require.Equal(t, "queued", r.show(parseJob(t, text).ID, "?wait=20").Status)
	require.Less(t, time.Since(began), soon/2)
	require.Zero(t, r.ingress.stored.waiters.count)
}

func TestStopEndsTheWaitingForAJob(t *testing.T) {
	t.Parallel()
	eachAgain(t, func(t *testing.T, r *againRig) {
		t.Helper()
		waiting := r.send(r.asked("respond-async, wait=20"))
		require.Eventually(t, func() bool { return len(r.ingress.stored.waiters.ids()) == 1 }, soon, time.Millisecond)
		r.ingress.idempotency.stop()
		resp, text := waiting.whole()
		require.Equal(t, http.StatusAccepted, resp.StatusCode, text)
		_, other := r.startIngress(withJobs(r.db), func(o *Options) { o.Idempotency = IdempotencyOptions{Keys: r.db, Keep: time.Hour} })
		again := r.request(http.MethodPost, other.URL+chatPath, plainRequest, "Prefer", "respond-async, wait=20", idem, "k")
		require.Equal(t, parseJob(t, text).ID, r.accepted(again).ID)
		r.one(parseJob(t, text).ID)
	})
}

func TestAJobWhoseIngressWasLostIsMadeOnce(t *testing.T) {
	t.Parallel()
	eachAgain(t, func(t *testing.T, r *againRig) {
		t.Helper()
		q := r.asked("respond-async")
		first := r.lost("k", q, plainRequest, true)
		r.create("team", first)
		r.lost("k", q, plainRequest, true) // and so is the one who took the key over
		require.Equal(t, store.JobPrefix+first, r.accepted(q).ID)
		require.Equal(t, store.JobPrefix+first, r.accepted(r.asked("respond-async")).ID, "replayed")
		r.one(store.JobPrefix + first)
	})
}

func TestAJobThatALostIngressDidNotMakeIsMade(t *testing.T) {
	t.Parallel()
	eachAgain(t, func(t *testing.T, r *againRig) {
		t.Helper()
		q := r.asked("respond-async")
		id := r.lost("k", q, plainRequest, true)
		require.Equal(t, store.JobPrefix+id, r.accepted(q).ID)
		r.one(store.JobPrefix + id)
	})
}

// Whether an error left the job stored nobody knows, until the next call finds out.
func TestAJobWhoseAcceptanceIsUnknownIsMadeOnce(t *testing.T) {
	t.Parallel()
	eachAgain(t, func(t *testing.T, r *againRig) {
		t.Helper()
		r.flaky.fail(nil, errors.New("hiccup"))
		r.send(r.asked("respond-async")).fails(http.StatusServiceUnavailable, inference.CodeStorageUnavailable)
		r.flaky.fail(errors.New("hiccup"), nil)
		r.send(r.asked("respond-async")).fails(http.StatusServiceUnavailable, inference.CodeStorageUnavailable)
		r.ingress.stored.room.set("team", tenantCount{jobs: 100, at: time.Now()})
		r.send(r.asked("respond-async")).fails(http.StatusTooManyRequests, inference.CodeQueueFull)
		r.ingress.stored.room.set("team", tenantCount{at: time.Now()})
		r.flaky.fail(nil, nil)
		r.one(r.accepted(r.asked("respond-async")).ID)
	})
}

func TestARefusedJobFreesItsKey(t *testing.T) {
	t.Parallel()
	eachAgain(t, func(t *testing.T, r *againRig) {
		t.Helper()
		r.chat(`{"messages":[]}`, idem, "k", "Prefer", "respond-async").fails(http.StatusBadRequest, inference.CodeInvalidRequest)
		r.one(r.accepted(r.asked("respond-async")).ID)
	})
}

func TestAJobThatEndedWithAPassingFaultIsTriedAnew(t *testing.T) {
	t.Parallel()
	eachAgain(t, func(t *testing.T, r *againRig) {
		t.Helper()
		r.work()
		first := r.send(r.asked("respond-async, wait=20"))
		k := r.take()
		k.fail(&inference.Error{Code: inference.CodeUpstreamInvalid, Message: "The provider sent nonsense."})
		first.fails(http.StatusBadGateway, inference.CodeUpstreamInvalid)
		again := r.send(r.asked("respond-async, wait=20"))
		other := r.take()
		require.NotEqual(t, k.job.ID, other.job.ID)
		other.done(`{"n":1}`)
		resp, text := again.whole()
		require.Equal(t, []any{http.StatusOK, `{"n":1}`}, []any{resp.StatusCode, text})
	})
}

func TestALostJobThatIsAnothersIsNotShown(t *testing.T) {
	t.Parallel()
	eachAgain(t, func(t *testing.T, r *againRig) {
		t.Helper()
		q := r.asked("respond-async, wait=20")
		r.create("others", r.lost("k", q, plainRequest, true))
		r.send(q).fails(http.StatusInternalServerError, inference.CodeInternal)
	})
}

func TestALostCallIsMadeAnewUnderAnotherID(t *testing.T) {
	t.Parallel()
	eachAgain(t, func(t *testing.T, r *againRig) {
		t.Helper()
		r.work()
		q := r.request(http.MethodPost, r.server.URL+chatPath, plainRequest, idem, "k")
		id := r.lost("k", q, plainRequest, false)
		c := r.send(q)
		k := r.take()
		require.NotEqual(t, id, k.job.ID)
		k.succeed(`{}`)
		c.whole()
	})
}

func TestABatchWhoseIngressWasLostIsMadeOnce(t *testing.T) {
	t.Parallel()
	eachAgain(t, func(t *testing.T, r *againRig) {
		t.Helper()
		files := &fileRig{r.rig, r.db}
		input := files.upload(part{"purpose", "", "batch"}, part{"file", "in.jsonl", lines("a")}).ID
		body := fmt.Sprintf(`{"input_file_id":%q,"endpoint":"/v1/chat/completions","completion_window":"24h"}`, input)
		ask := func(key string) *http.Request {
			return r.request(http.MethodPost, r.server.URL+batchesPath, body, idem, key)
		}
		made := func(q *http.Request) (b batchAnswer) {
			resp, text := r.send(q).whole()
			require.Equal(t, http.StatusOK, resp.StatusCode, text)
			require.NoError(t, json.Unmarshal([]byte(text), &b))
			return b
		}
		all := func(most int) []store.Batch {
			found, err := r.db.ListBatches(t.Context(), store.BatchFilter{Tenant: "team"})
			require.NoError(t, err)
			require.Len(t, found, most)
			return found
		}
		q := ask("k")
		id := "batch_" + r.lost("k", q, body, true)[2:]
		require.NoError(t, r.db.CreateBatch(t.Context(), store.Batch{
			ID: id, Tenant: "team", Endpoint: chatPath, Kind: inference.KindChat, InputFile: input, CompletionWindow: 24 * time.Hour,
			CreatedAt: time.Now(), ExpiresAt: time.Now().Add(24 * time.Hour),
		}))
		r.lost("k", q, body, true)
		require.Equal(t, id, made(q).ID)
		require.Equal(t, id, made(ask("k")).ID)
		all(1)

		q = ask("new")
		id = "batch_" + r.lost("new", q, body, true)[2:]
		require.Equal(t, id, made(q).ID)
		require.NotEqual(t, id, made(r.request(http.MethodPost, r.server.URL+batchesPath, body)).ID)
		all(3)

		q = ask("others")
		id = "batch_" + r.lost("others", q, body, true)[2:]
		require.NoError(t, r.db.CreateBatch(t.Context(), store.Batch{
			ID: id, Tenant: "others", Endpoint: chatPath, Kind: inference.KindChat, InputFile: input, CompletionWindow: 24 * time.Hour,
			CreatedAt: time.Now(), ExpiresAt: time.Now().Add(24 * time.Hour),
		}))
		r.send(q).fails(http.StatusInternalServerError, inference.CodeInternal)
		all(3)
	})
}

// What no job can be called does not reach the database: a text with a NUL would spoil the
// one question that is asked for all who wait.
func TestAnIDThatIsNoneIsNotLookedFor(t *testing.T) {
	t.Parallel()
	eachAgain(t, func(t *testing.T, r *againRig) {
		t.Helper()
		id := r.later(plainRequest)
		r.flaky.fail(errors.New("asked"), nil)
		for _, path := range []string{id + "%00", id[:len(id)-1] + "%00", id + "a", "job_nobodys", "job_", id[len(store.JobPrefix):], id[:len(id)-1] + "A"} {
			for method, rest := range map[string][]string{http.MethodGet: {"", "/result", "?wait=20s"}, http.MethodDelete: {""}} {
				for _, more := range rest {
					r.send(r.request(method, r.server.URL+"/v1/jobs/"+path+more, "")).fails(http.StatusNotFound, inference.CodeNotFound)
				}
			}
			r.get("/v1/jobs?after="+path).fails(http.StatusBadRequest, inference.CodeInvalidRequest)
		}
		r.get("/v1/jobs/"+id).fails(http.StatusServiceUnavailable, inference.CodeStorageUnavailable)
	})
}

// Whoever prefers a job gets one, and its answer is whole.
func TestAStreamThatIsAnsweredLaterIsAJob(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	whole := `{"model":"m","messages":[{"role":"user","content":"hi"}],"user":"u"}`
	for _, body := range []string{
		`{"stream":true,"model":"m","messages":[{"role":"user","content":"hi"}],"stream_options":{"include_usage":true},"user":"u"}`,
		`{"model":"m","messages":[{"role":"user","content":"hi"}], "stream" : true,"user":"u"}`,
	} {
		resp, text := r.chat(body, "Prefer", "respond-async").whole()
		require.Equal(t, http.StatusAccepted, resp.StatusCode, text)
		require.Equal(t, "respond-async", resp.Header.Get("Preference-Applied"))
		id := parseJob(t, text).ID
		require.JSONEq(t, whole, string(r.stored(id).Body))
		k := r.take()
		require.Equal(t, []any{inference.LaneBackground, false, false}, []any{k.job.Lane, k.job.Stream, k.job.IncludeUsage})
		require.JSONEq(t, whole, string(k.job.Body))
		k.done(`{"id":"c"}`)
		require.JSONEq(t, `{"id":"c"}`, string(r.show(id, "?wait=20").Response.Body))
	}
}
