package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/routing"
	"sluice/internal/webhook"
	"sluice/store"
)

// told returns the audit, the oldest entry first. Each of them has the request's id and a
// target.
func told(t *testing.T, db store.Audit) (entries []store.AuditEntry, actions []string) {
	t.Helper()
	list, err := db.ListAudit(t.Context(), store.AuditFilter{})
	require.NoError(t, err)
	for _, e := range slices.Backward(list) {
		require.NotEmpty(t, e.RequestID)
		require.NotEmpty(t, e.Target)
		entries, actions = append(entries, e), append(actions, e.Action)
	}
	return entries, actions
}

// requireFailed has the second entry say that the change of the first one failed.
func requireFailed(t *testing.T, pair []store.AuditEntry, after string) {
	t.Helper()
	require.Equal(t, pair[0].Action+".failed", pair[1].Action)
	require.Equal(t, pair[0].Target, pair[1].Target)
	require.Equal(t, pair[0].RequestID, pair[1].RequestID)
	require.Equal(t, pair[0].Actor, pair[1].Actor)
	require.Nil(t, pair[1].Before)
	require.JSONEq(t, after, string(pair[1].After))
}

// What was written down before it was done, and was not done then, the audit does not leave
// as if it had been.
func TestTheAuditSaysWhatFailed(t *testing.T) {
	t.Parallel()
	db := openJobs(t)
	r := setup(t, func(o *Options) { o.Admin = db })
	r.embedded.Close()
	require.Equal(t, http.StatusServiceUnavailable, r.operate(http.MethodPost, providersPath+"/acme/pause", "", nil).Code)
	entries, actions := told(t, db)
	require.Equal(t, []string{"provider.pause", "provider.pause.failed"}, actions)
	requireFailed(t, entries, `{"code":"queue_unavailable"}`)
}

// The operator may be gone when a change has failed, half done: the audit says so all the
// same, and nothing of what the error says.
func TestTheAuditSaysWhatWasDoneInPart(t *testing.T) {
	t.Parallel()
	s := ingressOf(nil, routing.Policy{})
	db := openJobs(t)
	s.opt.Admin, s.log = db, discard()
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), operatorKey{}, "on-call"))
	r := httptest.NewRequest(http.MethodPost, adminapi.QueuesPath+"/acme/purge", http.NoBody).WithContext(ctx)
	r.Header.Set(requestIDHeader, "req_1")
	done := adminapi.PurgedQueue{Ended: 3, More: true}
	err := s.audited(r, change{"queue.purge", "queue:acme", nil, done}, func() error {
		cancel()
		return &partError{errQueueGone(errors.New("a secret")), done}
	})
	require.Equal(t, inference.CodeQueueUnavailable, inference.AsError(err).Code)
	entries, _ := told(t, db)
	require.Len(t, entries, 2)
	requireFailed(t, entries, `{"code":"queue_unavailable","done":{"ended":3,"kept":0,"removed":0,"more":true}}`)
}

func TestTheAuditSaysWhichLettersStayed(t *testing.T) {
	t.Parallel()
	r := setupJobs(t, func(o *Options) { o.Admin = o.Jobs.Store.(store.Store) })
	r.work()
	id := r.later(plainRequest)
	l := r.bury(r.take())
	_, err := r.ingress.endJob(t.Context(), r.stored(id))
	require.NoError(t, err)
	require.Equal(t, http.StatusConflict, r.operate(http.MethodPost, requeuePath(l), "", nil).Code)
	var many adminapi.LettersDone
	r.operate(http.MethodPost, adminapi.DeadLettersPath+"/requeue", `{"limit":10}`, &many)
	require.Len(t, many.Failed, 1)
	entries, actions := told(t, r.db)
	require.Len(t, actions, 4, actions)
	requireFailed(t, entries[:2], `{"code":"conflict"}`)
	requireFailed(t, entries[2:], `{"code":"conflict","done":{"stay":1,"failed":{"`+l.ID+`":"conflict"}}}`)

	r.ingress.stored = nil
	require.Equal(t, http.StatusConflict, r.operate(http.MethodPost, requeuePath(l), "", nil).Code)
	_, actions = told(t, r.db)
	require.Len(t, actions, 4, "what the letter itself tells is known before")
}

// What a change of many came to is told as well, with the first of those that it was about.
func TestTheAuditSaysWhatAChangeOfManyCameTo(t *testing.T) {
	t.Parallel()
	r := wholeAdmin(t)
	r.work()
	bury := func() string {
		r.later(plainRequest)
		return r.bury(r.take()).ID
	}
	came := func(method, path, body, action, want string) {
		t.Helper()
		w := r.operate(method, "/admin/v1"+path, body, nil)
		require.Equal(t, http.StatusOK, w.Code, w.Body)
		entries, actions := told(t, r.db)
		require.GreaterOrEqual(t, len(entries), 2)
		last := len(entries) - 1
		require.Equal(t, []string{action, action + ".done"}, actions[last-1:])
		require.Equal(t, entries[last-1].RequestID, entries[last].RequestID)
		require.Equal(t, entries[last-1].Target, entries[last].Target)
		require.JSONEq(t, want, string(entries[last].After))
	}
	first, second := bury(), bury()
	came("POST", "/dead-letters/drop", `{"limit":1}`, "dead_letter.drop_many", `{"dropped":1,"ids":["`+second+`"]}`)
	came("POST", "/dead-letters/requeue", `{"limit":5}`, "dead_letter.requeue_many", `{"requeued":1,"ids":["`+first+`"]}`)
	r.take().done(`{}`)
	came("POST", "/dead-letters/requeue", `{"limit":5}`, "dead_letter.requeue_many", `{}`)
	came("DELETE", "/cache?model=m", "", "cache.purge", `{"deleted":0}`)
	came("POST", "/queues/acme/purge", `{"lane":"background"}`, "queue.purge", `{"ended":0,"kept":0,"removed":0,"more":false}`)
}

func TestTheAuditNamesAHundredAtMost(t *testing.T) {
	t.Parallel()
	var done adminapi.LettersDone
	var dropped []string
	p := &purging{}
	for i := range 3 * auditedIDs {
		id := letterID(uint64(i + 1))
		done.Requeued = append(done.Requeued, adminapi.LetterRequeued{ID: id})
		done.Failed = append(done.Failed, adminapi.LetterFailed{ID: id, Code: "conflict"})
		dropped = append(dropped, id)
		p.ended(id, id)
	}
	for _, said := range []lettersAudit{auditedLetters(&done, nil), auditedLetters(&done, dropped)} {
		require.Len(t, said.Failed, auditedIDs)
		require.Equal(t, 3*auditedIDs, said.Stay)
		require.Equal(t, dropped[:auditedIDs], said.IDs[:auditedIDs])
	}
	require.Len(t, p.ids, auditedIDs)
	require.Equal(t, 6*auditedIDs, p.done.Ended)
}

func TestTheAuditSaysWhatAReloadCameTo(t *testing.T) {
	t.Parallel()
	db := openJobs(t)
	file := &changingFile{}
	file.state = adminapi.ConfigState{File: "/etc/sluice.yaml", Hash: "old", NeedsRestart: []string{}, Config: json.RawMessage(`{"limits":{"key":{"queued":1},"same":1},"server":{}}`)}
	s := ingressOf(nil, routing.Policy{})
	s.opt.Config, s.opt.Admin = file, db
	h := admin(t, s, adminToken)
	reload := func(status int) {
		t.Helper()
		require.Equal(t, status, tell(t, h, http.MethodPost, adminapi.ConfigReloadPath, "", nil).Code)
	}
	file.next = "new"
	reload(http.StatusOK)
	file.err = errors.New("bad")
	file.state.LastReload = &adminapi.ConfigReload{Faults: []adminapi.ConfigFault{{At: "f:3:1", Setting: "server.timeout", Problem: "is wrong"}}}
	reload(http.StatusUnprocessableEntity)
	entries, actions := told(t, db)
	require.Equal(t, []string{"config.reload", "config.reload.done", "config.reload", "config.reload.failed"}, actions)
	require.JSONEq(t, `{"hash":"old"}`, string(entries[0].Before))
	require.Nil(t, entries[0].After, "it is not known yet")
	require.JSONEq(t, `{"hash":"old","settings":{"limits.key":{"queued":1},"log":null}}`, string(entries[1].Before))
	require.JSONEq(t, `{"hash":"new","settings":{"limits.key":null,"log":{"level":"info"}}}`, string(entries[1].After))
	require.Equal(t, entries[0].RequestID, entries[1].RequestID)
	require.Equal(t, "config:/etc/sluice.yaml", entries[1].Target)
	require.JSONEq(t, `{"hash":"new"}`, string(entries[2].Before))
	requireFailed(t, entries[2:], `{"code":"invalid_configuration"}`)

	file.state.File = ""
	reload(http.StatusConflict)
	_, actions = told(t, db)
	require.Len(t, actions, 4, "there is nothing that could be reloaded")
}

// What takes force without an operator is told once, if it changes something; a database
// that is away does not hinder it.
func TestTheAuditSaysWhatAFileChanged(t *testing.T) {
	t.Parallel()
	db := openJobs(t)
	var log strings.Builder
	s := ingressOf(nil, routing.Policy{})
	s.opt.Admin, s.log = db, slog.New(slog.NewTextHandler(&log, nil))
	state := func(hash, level string) adminapi.ConfigState {
		return adminapi.ConfigState{File: "/etc/sluice.yaml", Hash: hash, Config: json.RawMessage(`{"log":{"level":` + level + `},"same":1}`)}
	}
	s.AuditReload(t.Context(), "signal:box", state("old", `"info"`), state("old", `"info"`))
	s.AuditReload(t.Context(), "file:box", state("old", `"info"`), state("new", `"`+strings.Repeat("x", auditedBytes)+`"`))
	s.AuditReload(t.Context(), "file:box", state("new", `"info"`), state("secret replaced", `"info"`))
	entries, err := db.ListAudit(t.Context(), store.AuditFilter{})
	require.NoError(t, err)
	require.Len(t, entries, 2)
	require.JSONEq(t, `{"hash":"secret replaced"}`, string(entries[0].After))
	require.Equal(t, []string{"config.reload", "file:box", "config:/etc/sluice.yaml"}, []string{entries[1].Action, entries[1].Actor, entries[1].Target})
	require.JSONEq(t, `{"hash":"old","settings":{"log.level":"info"}}`, string(entries[1].Before))
	require.JSONEq(t, `{"hash":"new","settings":{"log.level":"(4098 bytes)"}}`, string(entries[1].After))
	require.Empty(t, log.String())
	away, cancel := context.WithCancel(t.Context())
	cancel()
	s.AuditReload(away, "file:box", state("new", `"info"`), state("newer", `"info"`))
	require.Contains(t, log.String(), "the audit does not know")
}

// changingFile is a file that holds something else with each reload that succeeds.
type changingFile struct {
	fileOf
	next string
}

func (f *changingFile) Reload(ctx context.Context) (before, after adminapi.ConfigState, err error) {
	if before, after, err = f.fileOf.Reload(ctx); err != nil {
		return before, after, err
	}
	f.state.Hash = f.next
	f.state.Config = json.RawMessage(`{"limits":{"key":null,"same":1},"server":{},"log":{"level":"info"}}`)
	return before, f.state, nil
}

// halfHooks is a database of webhooks that looks as if it could do what it then does not.
type halfHooks struct {
	WebhookStore
}

func (halfHooks) Redeliver(context.Context, string, string) error { return store.ErrNotFound }

func (halfHooks) DeleteWebhook(context.Context, string) error { return store.ErrNotFound }

func (halfHooks) RotateTenantSecret(context.Context, string, webhook.Secret, time.Duration) error {
	return errors.New("connection to whsec_of_somebody lost")
}

func TestTheAuditOfWebhooks(t *testing.T) {
	t.Parallel()
	r, _ := hookAdmin(t)
	s := ingressOf(nil, routing.Policy{})
	s.hooks, s.opt.Webhooks, s.opt.Admin = r.hooks, r.hooks.opt, r.db
	h := admin(t, s, adminToken)
	const hook = `{"tenant":"acme","url":"https://example.com:8443/services/T0/a-secret?token=another"}`
	var made adminapi.Webhook
	for range 2 {
		tell(t, h, http.MethodPost, adminapi.WebhooksPath, hook, &made)
	}
	e := store.NewEvent("acme", webhook.JobFailed, "job_1")
	_, err := r.db.AppendEvent(t.Context(), e)
	require.NoError(t, err)
	redeliver := func(event string) int {
		return tell(t, h, http.MethodPost, adminapi.RedeliverPath, `{"event":"`+event+`","webhook":"`+made.ID+`"}`, nil).Code
	}
	require.Equal(t, http.StatusNotFound, redeliver("evt_none"))
	require.Equal(t, http.StatusBadRequest, tell(t, h, http.MethodPost, adminapi.WebhooksPath, hook, nil).Code, "there are enough")
	require.Equal(t, http.StatusBadRequest, tell(t, h, http.MethodPost, adminapi.WebhooksPath, `{"tenant":"","url":"https://example.com/"}`, nil).Code)
	require.Equal(t, http.StatusBadRequest, tell(t, h, http.MethodPost, adminapi.SecretPath, `{"tenant":""}`, nil).Code)
	require.Equal(t, http.StatusNotFound, tell(t, h, http.MethodDelete, adminapi.WebhooksPath+"/whk_none", "", nil).Code)
	_, actions := told(t, r.db)
	require.Equal(t, []string{"webhook.create", "webhook.create"}, actions, "what is known to be refused is no change")
	require.Equal(t, http.StatusNoContent, redeliver(e.ID))

	s.opt.Webhooks.Store = halfHooks{r.db}
	require.Equal(t, http.StatusNotFound, redeliver(e.ID))
	require.Equal(t, http.StatusNotFound, tell(t, h, http.MethodDelete, adminapi.WebhooksPath+"/"+made.ID, "", nil).Code)
	require.Equal(t, http.StatusInternalServerError, tell(t, h, http.MethodPost, adminapi.SecretPath, `{"tenant":"acme","rotate":true}`, nil).Code)
	entries, actions := told(t, r.db)
	require.Len(t, actions, 9, actions)
	for _, e := range entries {
		require.NotContains(t, string(e.Before)+string(e.After), "a-secret")
	}
	require.JSONEq(t, `{"tenant":"acme","url":"https://example.com:8443","events":[]}`, string(entries[0].After))
	require.JSONEq(t, string(entries[0].After), string(entries[5].Before))
	require.Equal(t, "webhook.redeliver", actions[2])
	requireFailed(t, entries[3:5], `{"code":"not_found"}`)
	requireFailed(t, entries[5:7], `{"code":"not_found"}`)
	requireFailed(t, entries[7:], `{"code":"internal_error"}`)
}
