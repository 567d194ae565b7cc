package admin

import (
	"net/http"

	"sluice/internal/adminapi"
	"sluice/store"
)

// auditBytes bounds what the entries of one page say about before and after, which may be
// much: a page is cut there, behind its first entry.
const auditBytes = 2 << 20

func (a *API) listAudit(w http.ResponseWriter, r *http.Request) {
	q := queryOf(r)
	limit := q.limit()
	f := store.AuditFilter{
		Actor: q.text("actor"), Action: q.text("action"), Target: q.text("target"), From: q.time("from"), To: q.time("to"),
		Limit: limit + 1, After: q.text("after"),
	}
	err := q.err
	var entries []store.AuditEntry
	if err == nil {
		entries, err = a.opt.Store.ListAudit(r.Context(), f)
	}
	if err != nil {
		a.opt.Fail(w, r, afterFault(err))
		return
	}
	list := adminapi.AuditList{Entries: []adminapi.AuditEntry{}}
	entries, list.Page = pageOf(entries, min(limit, roomFor(entries)), func(e store.AuditEntry) string { return e.ID })
	for _, e := range entries {
		list.Entries = append(list.Entries, adminapi.AuditEntry{
			ID: e.ID, At: e.At, Actor: e.Actor, RequestID: e.RequestID, Action: e.Action, Target: e.Target, Before: e.Before, After: e.After,
		})
	}
	a.write(w, r, http.StatusOK, list)
}

// roomFor returns how many of the entries fit into an answer, at least one.
func roomFor(entries []store.AuditEntry) int {
	sum := 0
	for i, e := range entries {
		if sum += len(e.Before) + len(e.After); sum > auditBytes && i > 0 {
			return i
		}
	}
	return max(len(entries), 1)
}
