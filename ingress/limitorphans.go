package ingress

import (
	"context"
	"slices"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// A call goes on when its ingress is gone, and counts as concurrent until its deadline or
// until somebody knows that it has ended: whoever stores the row that its worker has written
// in the ingress's place. A row that is lost between the database and the counters costs no
// more than the time until the deadline.

// orphaned reports whether the row is of a call that has outlived its ingress.
func (s *Ingress) orphaned(r inference.Record) bool {
	return s.limits != nil && r.Outcome == inference.OutcomeAbandoned && queue.IngressOf(r.JobID) != s.opt.ID
}

// together returns how many rows, from the first, are stored at once. That of an orphan is
// stored by itself: only so it is known whether it is new, and no call is to end twice.
func (s *Ingress) together(records []inference.Record) int {
	most := min(len(records), store.MaxBatch)
	if i := slices.IndexFunc(records[:most], s.orphaned); i >= 0 {
		return max(i, 1)
	}
	return most
}

// freeOrphan says that the row's call has ended, by the limits that hold now.
func (s *Ingress) freeOrphan(ctx context.Context, r *inference.Record) {
	settings := s.current()
	own, err := s.limits.orphans.of(ctx, settings.StaticKeys, r.KeyID)
	if err != nil {
		return // nobody knows its limits while the database is away
	}
	if issuers, _, known := settings.callers.tokens.CallerLimits(r.KeyID); known {
		own = issuers
	}
	model := countedModel(s.table(settings), r.ModelAsked, []inference.Candidate{{Provider: r.Provider}})
	scopes := settings.Limits.scopes(payer{key: r.KeyID, own: own, tenant: r.Tenant, model: model})
	if len(scopes) > 0 {
		s.limits.by.Ended(queue.IngressOf(r.JobID), scopes)
	}
}
