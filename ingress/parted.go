package ingress

import (
	"slices"
	"time"

	"sluice/internal/queue"
)

// parted is when workers were heard of for the last time.
type parted struct {
	someone    time.Time            // one that may have served any provider
	byProvider map[string]time.Time // one that said it served this one
}

// Bounds of what is remembered of that.
const (
	namedMost  = 1000 // providers of one worker
	partedMost = 10_000
)

// left notes that a worker of these providers has left, and said so. Its last word came when
// it took nothing more, and names what it had begun to serve.
func (p *parted) left(providers []string, now time.Time) {
	if len(providers) == 0 || len(providers) >= namedMost || len(p.byProvider)+len(providers) > partedMost {
		clear(p.byProvider)
		p.lost(now)
		return
	}
	if p.byProvider == nil {
		p.byProvider = make(map[string]time.Time)
	}
	for _, provider := range providers {
		p.byProvider[provider] = now
	}
}

// lost notes that a worker was forgotten. What it last began to serve it may not have said.
func (p *parted) lost(now time.Time) { p.someone = now }

// since is when last a worker parted that may have been given a job of the provider.
func (p *parted) since(provider string) time.Time { return later(p.someone, p.byProvider[provider]) }

// named adds to the providers that a worker has spoken of. From namedMost on they are not all
// known.
func named(before []string, providers []queue.ProviderPresence) []string {
	all := before
	for i := range providers {
		if name := providers[i].Name; len(all) < namedMost && !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// spokeAfter is how long after a job has left its queue a worker must have spoken to be
// known to live: longer than it takes one to say that it has a job, and than words are on
// their way, and so short that the next one comes while the row still waits.
const spokeAfter = 1500 * time.Millisecond

// allSpoke reports whether every worker that may have been given a job of the provider,
// between its publication and when it left its queue, is known to live on. A worker announces
// itself before it takes anything, so one that was lost has been heard of, if this ingress
// listened for long enough; whoever parted since may have been killed while it left.
func (d *directory) allSpoke(provider string, published, left, connectedAt time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	listened := published.Sub(later(d.began, connectedAt)) >= workerGone && len(d.workers) < maxWorkers
	if !listened || !d.parted.since(provider).Before(published) {
		return false
	}
	for _, w := range d.workers {
		if w.at.Sub(left) < spokeAfter {
			return false
		}
	}
	return true
}
