package ingress

import (
	"context"
	"errors"
	"slices"
	"time"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// purgedRetry is when a client may send a request again that an operator took out of its
// queue.
const purgedRetry = 10 * time.Second

func errPurged() *inference.Error {
	return &inference.Error{
		Code: inference.CodePurged, Retryable: true, RetryAfter: purgedRetry,
		Message: "An operator has emptied the queue in which the request waited. Try again later.",
	}
}

// purge ends those of the jobs that wait at these places of the provider's queue. Their
// clients are told at once. The row waits a moment for the word of a worker that took the
// job just now, so that what its call used is counted.
func (fs *flights) purge(provider string, jobs []queue.StoredPlace) queue.Purge {
	var done queue.Purge
	for _, j := range jobs {
		f := fs.find(j.JobID)
		if f == nil || f.isElsewhere(provider, j.Seq) {
			continue
		}
		if e := errPurged(); f.waits() && f.leave(inference.OutcomeCancelled, e, time.Now()) {
			done.Ended = append(done.Ended, j.JobID)
			if f.feed != nil {
				f.feed.abort(queue.End{JobID: j.JobID, Err: e})
			}
			fs.side.Go(func() { fs.cancel(f) })
			continue
		}
		done.Kept = append(done.Kept, j.JobID)
	}
	return done
}

// waits reports whether the job is in no worker's hands, as far as is known.
func (f *flight) waits() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.ended && f.closing.IsZero() && !f.begun && !f.held
}

// isElsewhere reports whether another message than this one stands for the job.
func (f *flight) isElsewhere(provider string, seq uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.place.seq != 0 && (f.place.seq != seq || f.at().Provider != provider)
}

// Bounds of one purge.
const (
	purgeMost   = 1000
	purgeLooked = 20 * purgeMost
	purgePage   = 200
	goneAsked   = 3 // times in a row that an ingress must be found gone
)

// purging is the purge of one lane at work.
type purging struct {
	*Ingress
	provider string
	lane     inference.Lane
	gone     map[string]bool // ingresses that nobody is any more
	done     adminapi.PurgedQueue
	ids      []string // of the first jobs that were ended, as the audit names them
}

// ended counts jobs that the purge has ended.
func (p *purging) ended(ids ...string) {
	p.done.Ended += len(ids)
	p.ids = append(p.ids, ids[:min(len(ids), auditedIDs-len(p.ids))]...)
}

// purgeQueue ends the jobs of a lane that came before the time and that no worker has,
// purgeMost at most, and names the first of them.
func (s *Ingress) purgeQueue(
	ctx context.Context, provider string, lane inference.Lane, before time.Time,
) (done adminapi.PurgedQueue, ids []string, err error) {
	p := &purging{Ingress: s, provider: provider, lane: lane, gone: make(map[string]bool)}
	end := p.interactive
	if lane.Stored() {
		end = p.storedJobs
	}
	from, looked := uint64(0), 0
	for {
		jobs, next, err := s.conn.Queued(ctx, provider, lane, from, before, min(purgePage, purgeMost-p.done.Ended))
		if err == nil {
			err = end(ctx, jobs)
		}
		if err != nil || next == 0 {
			return p.done, p.ids, err
		}
		from, looked = next, looked+len(jobs)
		if p.done.Ended >= purgeMost || looked >= purgeLooked {
			p.done.More = p.done.Ended > 0
			return p.done, p.ids, nil
		}
	}
}

// interactive has each job's ingress end it, since that is where its client waits. What is
// said of its end, and its row, are that one's matter.
func (p *purging) interactive(ctx context.Context, jobs []queue.QueuedJob) error {
	byIngress := make(map[string][]queue.QueuedJob)
	for _, q := range jobs {
		if q.Job == nil {
			p.done.Kept++ // a worker keeps it among the dead letters
			continue
		}
		id := queue.IngressOf(q.Job.ID)
		byIngress[id] = append(byIngress[id], q)
	}
	for ingress, jobs := range byIngress {
		err := p.at(ctx, ingress, jobs)
		if errors.Is(err, queue.ErrNoIngress) {
			p.gone[ingress] = true
			err = p.orphans(ctx, jobs)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// at asks an ingress, several times when nobody hears it: it may only be cut off.
func (p *purging) at(ctx context.Context, ingress string, jobs []queue.QueuedJob) error {
	if p.gone[ingress] {
		return queue.ErrNoIngress
	}
	places := make([]queue.StoredPlace, len(jobs))
	for i, q := range jobs {
		places[i] = queue.StoredPlace{JobID: q.Job.ID, Seq: q.Seq}
	}
	var answer queue.Purge
	var err error
	for n := 1; ; n++ {
		answer, err = p.conn.AskPurge(ctx, ingress, p.provider, places)
		if n == goneAsked || !errors.Is(err, queue.ErrNoIngress) || ctx.Err() != nil {
			break
		}
		pause(ctx, time.Second)
	}
	if err != nil {
		return errors.Join(ctx.Err(), err)
	}
	p.ended(answer.Ended...)
	p.done.Kept += len(answer.Kept)
	for _, q := range jobs {
		if slices.Contains(answer.Ended, q.Job.ID) || slices.Contains(answer.Kept, q.Job.ID) {
			continue
		}
		if err := p.flights.dispatch.Remove(ctx, q.Job.ID, p.provider, q.Seq); err != nil {
			return err
		}
		p.done.Removed++
	}
	return nil
}

// orphans ends jobs whose ingress is gone, and with it their clients. Their rows are safe
// before their messages go. What a worker has had is a worker's to account for.
func (p *purging) orphans(ctx context.Context, jobs []queue.QueuedJob) error {
	now := time.Now()
	var records []inference.Record
	var waiting []queue.QueuedJob
	for _, q := range jobs {
		if q.Given {
			p.done.Kept++
			continue
		}
		waiting = append(waiting, q)
		j, age := q.Job, max(now.Sub(q.Job.CreatedAt), 0)
		records = append(records, inference.Record{
			JobID: j.ID, RequestID: j.RequestID, Kind: j.Kind, Tenant: j.Tenant, KeyID: j.KeyID, ModelAsked: j.Model, Provider: p.provider,
			Stream: j.Stream, Attempts: j.Attempts, Tries: j.Tries, Outcome: inference.OutcomeCancelled,
			Status: statusOf(errPurged()), ErrorCode: inference.CodePurged, CreatedAt: j.CreatedAt, Queue: age, Total: age,
		})
	}
	if len(records) == 0 {
		return nil
	}
	if err := p.conn.AppendRecords(ctx, records); err != nil {
		return err
	}
	for _, q := range waiting {
		p.flights.cancelAt(q.Job.ID, p.provider, q.Seq)
		p.flights.dropBlob(q.Job.ID, q.BodyRef)
		p.ended(q.Job.ID)
	}
	return nil
}

// storedJobs ends jobs as cancelled in the database, which owns them: were only their
// messages taken away, they would get new ones.
func (p *purging) storedJobs(ctx context.Context, jobs []queue.QueuedJob) error {
	for page := range slices.Chunk(jobs, store.MaxJobs) {
		now := time.Now()
		var ends []store.JobEnd
		var gone []store.Job
		for _, q := range page {
			if q.Job == nil || q.Given {
				p.done.Kept++
				continue
			}
			job := store.Job{
				ID: q.Job.ID, Provider: p.provider, Seq: q.Seq, Attempts: q.Job.Attempts, Tries: q.Job.Tries, CreatedAt: q.Job.CreatedAt,
			}
			row := cancelledRow(&job, now)
			row.ErrorCode, row.Status = inference.CodePurged, statusOf(errPurged())
			expires := time.Time{}
			if p.lane == inference.LaneBackground {
				expires = now.Add(p.opt.Jobs.Retention)
			}
			ends, gone = append(ends, store.CancelledEnd(job.ID, now, expires, row)), append(gone, job)
		}
		if len(ends) == 0 {
			continue
		}
		news, err := p.stored.rows.FinishJobs(ctx, ends)
		if err != nil {
			return jobError(err)
		}
		p.stored.ended(news)
		p.stored.cancel(ctx, gone)
		if err := p.stored.limits.cutShort(ctx, news); err != nil {
			p.log.Debug("what purged jobs took is left to the sweep", "jobs", len(news), "error", err)
		}
		for _, job := range news {
			p.ended(job.ID)
		}
		p.done.Removed += len(gone) - len(news)
	}
	return nil
}
