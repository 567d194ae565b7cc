package ingress

import (
	"context"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"sluice/internal/inference"
	"sluice/store"
)

// JobWatch is what is asked about jobs time and again.
type JobWatch interface {
	EndedJobs(ctx context.Context, ids []string) (ended []string, err error)
	JobEpochs(ctx context.Context, ids []string) (map[string]int, error)
	JobsByID(ctx context.Context, ids []string) ([]store.Job, error)
	JobBody(ctx context.Context, id string) ([]byte, error)
	UnfinishedJobs(ctx context.Context, tenant string, most int) (int, error)
	OldestWaiting(ctx context.Context) (time.Time, error)
}

// Bounds of waiting for the ends of jobs. Whoever comes when so many wait gets the job as
// it is, and may ask again.
const (
	watchEvery  = 500 * time.Millisecond
	waitersMost = store.MaxPage
)

// waiters are the requests that wait for ends of jobs.
type waiters struct {
	mu    sync.Mutex
	count int
	over  bool // nobody waits any more
	byID  map[string]map[chan struct{}]bool
}

// add returns a channel that is closed when the job ends, or false when too many wait or
// nobody is to.
func (w *waiters) add(id string) (ended chan struct{}, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over || w.count >= waitersMost {
		return nil, false
	}
	if w.byID[id] == nil {
		w.byID[id] = make(map[chan struct{}]bool)
	}
	ended = make(chan struct{})
	w.byID[id][ended] = true
	w.count++
	return ended, true
}

func (w *waiters) remove(id string, ended chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.byID[id][ended] {
		return // it was woken
	}
	w.count--
	if delete(w.byID[id], ended); len(w.byID[id]) == 0 {
		delete(w.byID, id)
	}
}

// wake tells those who wait for the job that it has ended.
func (w *waiters) wake(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ended := range w.byID[id] {
		close(ended)
		w.count--
	}
	delete(w.byID, id)
}

// close ends the waiting of all who do, and lets nobody wait any more.
func (w *waiters) close() {
	w.mu.Lock()
	w.over = true
	w.mu.Unlock()
	for _, id := range w.ids() {
		w.wake(id)
	}
}

func (w *waiters) ids() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := make([]string, 0, len(w.byID))
	for id := range w.byID {
		ids = append(ids, id)
	}
	return ids
}

// watch wakes those who wait for jobs that ended at another ingress: one question to the
// database for all of them together.
func (d *stored) watch(ctx context.Context) {
	d.every(ctx, watchEvery, "watch jobs", func(ctx context.Context) error {
		ids := d.waiters.ids()
		if len(ids) == 0 {
			return nil
		}
		ended, err := d.rows.EndedJobs(ctx, ids)
		for _, id := range ended {
			d.waiters.wake(id)
		}
		return err
	})
}

// await returns the tenant's job when it has ended, or as it is when it has not after so
// long. release gives its memory back.
func (d *stored) await(ctx context.Context, tenant, id string, most time.Duration) (job store.Job, release func(), err error) {
	var ended chan struct{}
	if most > 0 {
		var ok bool
		if ended, ok = d.waiters.add(id); ok { // before the look, or an end in between would be missed
			defer d.waiters.remove(id, ended)
		}
	}
	job, release, err = d.read(ctx, tenant, id)
	if err != nil || ended == nil || job.Status.Finished() {
		return job, release, err
	}
	release()
	limit := time.NewTimer(most)
	defer limit.Stop()
	select {
	case <-ended:
	case <-limit.C:
	case <-ctx.Done():
		return store.Job{}, nil, errClientGone()
	}
	return d.read(ctx, tenant, id)
}

// largeAnswer is from where on an answer counts for the memory of large ones.
const largeAnswer = 1 << 20

// read returns the tenant's job without its body. Until release is called it counts for
// the memory that large answers have together.
func (d *stored) read(ctx context.Context, tenant, id string) (job store.Job, release func(), err error) {
	select {
	case d.reads <- struct{}{}:
		defer func() { <-d.reads }()
	case <-ctx.Done():
		return store.Job{}, nil, errClientGone()
	}
	job, err = d.rows.Job(ctx, tenant, id)
	if err != nil {
		return store.Job{}, nil, jobError(err)
	}
	job.Body = nil
	size := min(int64(len(job.Response)), d.memory)
	if size < largeAnswer {
		return job, func() {}, nil
	}
	if err := d.answers.Acquire(ctx, size); err != nil {
		return store.Job{}, nil, errClientGone()
	}
	return job, func() { d.answers.Release(size) }, nil
}

// tenantRoom bounds the unfinished jobs of tenants. The database counts them, not at every
// job but often enough that a bound is passed by little.
type tenantRoom struct {
	counting singleflight.Group
	mu       sync.Mutex
	counts   map[string]tenantCount
}

type tenantCount struct {
	jobs int // when they were counted, and those accepted here since
	at   time.Time
}

// How long a count holds, far from the bound and near it, and of how many tenants counts
// are kept.
const (
	countFar     = 10 * time.Second
	countNear    = time.Second
	countTenants = 10_000
)

// hasRoom returns why the tenant can have no further job, if so.
func (d *stored) hasRoom(ctx context.Context, tenant string) error {
	r, most := &d.room, d.opt.MaxPerTenant
	r.mu.Lock()
	count, known := r.counts[tenant]
	r.mu.Unlock()
	holds := countFar
	if count.jobs > most/2 {
		holds = countNear
	}
	if !known || time.Since(count.at) > holds {
		v, err, _ := r.counting.Do(tenant, func() (any, error) { return d.rows.UnfinishedJobs(context.WithoutCancel(ctx), tenant, most) })
		if err != nil {
			return jobError(err)
		}
		count.jobs, _ = v.(int)
		count.at = time.Now()
		r.set(tenant, count)
	}
	if count.jobs >= most {
		return &inference.Error{
			Code: inference.CodeQueueFull, Retryable: true, RetryAfter: countNear,
			Message: "There are as many unfinished jobs as one tenant may have. Try again when some of them have ended.",
		}
	}
	return nil
}

func (r *tenantRoom) set(tenant string, count tenantCount) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.counts) >= countTenants {
		clear(r.counts) // they come back, one count each
	}
	r.counts[tenant] = count
}

// taken counts a job that was accepted here.
func (r *tenantRoom) taken(tenant string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if count, known := r.counts[tenant]; known {
		count.jobs++
		r.counts[tenant] = count
	}
}

// waitOf returns how long the request wants to wait for the job: the parameter wait, such
// as 30s or a number of seconds, else the preference of that name.
func (d *stored) waitOf(r *http.Request) (time.Duration, error) {
	text := r.URL.Query().Get("wait")
	if text == "" {
		return min(max(preferencesOf(r.Header).wait, 0), d.opt.MaxWait), nil
	}
	wait, ok := parseDuration(text)
	if !ok || wait < 0 {
		return 0, invalidField("wait", "wait must be a duration such as 30s, or a number of seconds.")
	}
	return min(wait, d.opt.MaxWait), nil
}
