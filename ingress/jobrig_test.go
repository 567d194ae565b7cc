package ingress

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
	"sluice/store/sqlite"
)

// jobRig is a rig whose ingress answers later, on a real database.
type jobRig struct {
	*rig
	db store.Store
}

func setupJobs(t *testing.T, change ...func(*Options)) *jobRig {
	t.Helper()
	db := openJobs(t)
	return &jobRig{setup(t, append([]func(*Options){withJobs(db)}, change...)...), db}
}

func openJobs(t *testing.T) store.Store {
	t.Helper()
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "sluice.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, db.Migrate(t.Context()))
	return db
}

func withJobs(db JobStore) func(*Options) {
	return func(o *Options) {
		o.Jobs = JobOptions{Store: db, Retention: time.Hour, Deadline: time.Hour, MaxWait: soon, MaxPerTenant: 100}
	}
}

// work makes the script take jobs of all lanes.
func (r *jobRig) work() {
	r.t.Helper()
	r.rig.work()
	_, err := r.conn.EnsureStored(r.t.Context(), "acme")
	require.NoError(r.t, err)
	for _, lane := range []inference.Lane{inference.LaneBackground, inference.LaneBatch} {
		require.NoError(r.t, r.conn.EnsureLane(r.t.Context(), "acme", lane, 64))
		p, err := r.conn.NewPuller("acme", lane, 64, func(d *queue.Delivery) {
			if job, ref, err := d.Job(); err == nil {
				r.jobs <- &taken{r.rig, d, job, ref, queue.Run{Epoch: job.Epoch, Delivery: d.Delivery}}
			}
		}, func() {})
		require.NoError(r.t, err)
		r.t.Cleanup(p.Stop)
	}
}

// later sends a request that is to be answered later, and returns its job's id as the API
// has it.
func (r *jobRig) later(body string, headers ...string) string {
	r.t.Helper()
	resp, text := r.chat(body, append([]string{"Prefer", "respond-async"}, headers...)...).whole()
	require.Equal(r.t, http.StatusAccepted, resp.StatusCode, text)
	return parseJob(r.t, text).ID
}

// jobAnswer is a job on the wire.
type jobAnswer struct {
	ID, Object, Status, Model, Endpoint string
	Metadata                            map[string]string
	CreatedAt                           int64  `json:"created_at"`
	StartedAt                           *int64 `json:"started_at"`
	FinishedAt                          *int64 `json:"finished_at"`
	ExpiresAt                           *int64 `json:"expires_at"`
	Attempts                            int
	Provider                            *string
	Usage                               *struct {
		TotalTokens int64 `json:"total_tokens"`
	}
	Error *struct {
		Message, Type, Code string
		Param               *string
	}
	Response *struct {
		StatusCode int    `json:"status_code"`
		RequestID  string `json:"request_id"`
		Body       json.RawMessage
	}
}

func parseJob(t *testing.T, text string) (j jobAnswer) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(text), &j), text)
	return j
}

func (r *jobRig) show(id, query string) jobAnswer {
	r.t.Helper()
	resp, text := r.get("/v1/jobs/" + id + query).whole()
	require.Equal(r.t, http.StatusOK, resp.StatusCode, text)
	return parseJob(r.t, text)
}

// stored is the job as the database has it.
func (r *jobRig) stored(id string) store.Job {
	r.t.Helper()
	job, err := r.db.Job(r.t.Context(), "team", id[len(store.JobPrefix):])
	require.NoError(r.t, err)
	return job
}

// claim asks whether the job in the script's hands is still wanted.
func (k *taken) claim() queue.Judgement {
	k.rig.t.Helper()
	j, err := k.rig.answer.ClaimStored(k.rig.t.Context(), k.job.Lane, queue.Claim{JobID: k.job.ID, Run: k.run, Worker: "worker01"})
	require.NoError(k.rig.t, err)
	return j
}

// result says what became of a stored job, and acknowledges its message.
func (k *taken) result(change func(*queue.Result)) {
	k.rig.t.Helper()
	res := &queue.Result{Lane: k.job.Lane, Tenant: k.job.Tenant, Taken: time.Now(), CreatedAt: k.job.CreatedAt}
	res.End = &queue.End{JobID: k.job.ID, Run: k.run, Worker: "worker01", Provider: "acme", Attempts: k.job.Attempts + 1}
	change(res)
	require.NoError(k.rig.t, k.rig.answer.Result(k.rig.t.Context(), res))
	k.d.Ack()
}

// done says that the job succeeded.
func (k *taken) done(body string) {
	k.rig.t.Helper()
	k.result(func(res *queue.Result) {
		res.End.Body, res.End.Model = []byte(body), "m-served"
		res.End.Usage = inference.Usage{PromptTokens: 3, CompletionTokens: 4, Known: true}
	})
}

func (k *taken) fail(e *inference.Error) {
	k.rig.t.Helper()
	k.result(func(res *queue.Result) { res.End.Err = e })
}
