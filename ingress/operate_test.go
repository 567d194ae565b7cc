package ingress

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/internal/routing"
	"sluice/store"
)

// operate asks the rig's admin API, and reads its answer into out.
func (r *rig) operate(method, path, body string, out any) *httptest.ResponseRecorder {
	r.t.Helper()
	w := ask(checked(r.t, r.ingress.AdminHandler(adminToken)), method, path, "Bearer "+adminToken, body)
	if out != nil {
		require.Equal(r.t, http.StatusOK, w.Code, w.Body.String())
		require.NoError(r.t, json.Unmarshal(w.Body.Bytes(), out), w.Body.String())
	}
	return w
}

func (r *rig) order(what, body string) (p adminapi.Provider) {
	r.t.Helper()
	r.operate(http.MethodPost, providersPath+"/acme/"+what, body, &p)
	return p
}

func withAcme(queued int) func(*Options) {
	return func(o *Options) {
		o.Settings.Providers = map[string]ProviderInfo{"acme": {Models: []string{"m", "m-*"}, MaxQueued: queued}}
	}
}

func TestALogHasTheEndOfAnOrderThatHasOne(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	s := ingressOf(nil, routing.Policy{})
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	s.logOrder("acme", queue.Control{State: queue.ProviderActive})
	require.Contains(t, log.String(), "state=active")
	require.NotContains(t, log.String(), "until")
	s.logOrder("acme", queue.Control{State: queue.ProviderPaused, Until: time.Unix(1, 0)})
	require.Contains(t, log.String(), "until=1970")
}

func TestProvidersArePausedDrainedAndResumed(t *testing.T) {
	t.Parallel()
	r := setup(t)
	other, _ := r.startIngress()
	p := r.order("pause", `{"reason":"key rotation","for":"90s"}`)
	require.Equal(t, []string{"acme", "paused", "key rotation"}, []string{p.Name, p.State, p.Reason})
	require.Equal(t, 90*time.Second, p.Until.Sub(*p.Since))
	paused := func() providerState { return other.workers.states()["acme"] }
	require.Eventually(t, func() bool { s := paused(); return s.state() == queue.ProviderPaused }, soon, time.Millisecond, "every ingress hears of it")
	s := paused()
	require.InDelta(t, 90, s.activeIn(time.Now()).Seconds(), 5)
	late, _ := r.startIngress()
	require.Eventually(t, func() bool { s := late.workers.states()["acme"]; return s.state() == queue.ProviderPaused }, soon, time.Millisecond, "also one that comes later")

	p = r.order("drain", "")
	require.Equal(t, "draining", p.State)
	require.Nil(t, p.Until)
	resp := r.chat(plainRequest).fails(http.StatusServiceUnavailable, inference.CodeProviderDraining)
	require.Equal(t, "60", resp.Header.Get("Retry-After"))
	require.Empty(t, r.allRows(), "it was not accepted")
	ready, _ := r.get("/readyz").whole()
	require.Equal(t, http.StatusOK, ready.StatusCode)
	models, text := r.get("/v1/models").whole()
	require.Equal(t, http.StatusOK, models.StatusCode)
	require.Contains(t, text, `"m"`, "the model is served here")

	require.Equal(t, "active", r.order("resume", "{}").State)
	require.Eventually(t, func() bool { s := paused(); return s.state() == queue.ProviderActive }, soon, time.Millisecond)
	_, metrics := r.get("/metrics").whole()
	for _, line := range []string{
		`sluice_provider_state{provider="acme",state="active"} 1`, `sluice_provider_state{provider="acme",state="paused"} 0`,
		`sluice_dead_letters{provider="acme"} 0`, `sluice_queue_oldest_seconds{lane="interactive",provider="acme"} 0`,
	} {
		require.Contains(t, metrics, line)
	}
}

// The audit says how a provider was, also when nobody had said anything of it yet, or when
// what was said was over by itself.
func TestTheAuditSaysHowAProviderWas(t *testing.T) {
	t.Parallel()
	db := openJobs(t)
	r := setup(t, func(o *Options) { o.Admin = db })
	r.order("pause", `{"for":"1s","reason":"short"}`)
	require.Eventually(t, func() bool {
		s := r.ingress.workers.states()["acme"]
		return s.Order.At(time.Now()) == queue.ProviderActive
	}, soon, 10*time.Millisecond)
	r.order("drain", "")
	r.order("resume", "")
	entries, err := db.ListAudit(t.Context(), store.AuditFilter{})
	require.NoError(t, err)
	require.Len(t, entries, 3)
	require.JSONEq(t, `{"state":"active"}`, string(entries[2].Before))
	var was queue.Control
	for i, want := range []queue.ProviderState{queue.ProviderDraining, queue.ProviderActive} {
		require.NoError(t, json.Unmarshal(entries[i].Before, &was))
		require.Equal(t, want, was.State)
		require.Empty(t, was.Reason)
	}
}

func TestAPauseWithATimeIsOverForRoutingToo(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.order("drain", `{"for":"1s"}`)
	r.chat(plainRequest).fails(http.StatusServiceUnavailable, inference.CodeProviderDraining)
	require.Eventually(t, func() bool { s := r.ingress.workers.states()["acme"]; return s.state() == queue.ProviderActive }, soon, 10*time.Millisecond)
	var list adminapi.ProviderList
	r.operate(http.MethodGet, providersPath, "", &list)
	require.Equal(t, "active", list.Providers[0].State)
	require.Nil(t, list.Providers[0].Until)
}

// The queue of a paused provider holds what comes, up to its bound and up to its deadline,
// and nothing that waits there is thought lost, although its workers are gone.
func TestAPausedQueueHolds(t *testing.T) {
	t.Parallel()
	r := setup(t, func(o *Options) {
		o.Settings.Providers["next"] = ProviderInfo{Models: []string{"other"}, MaxQueued: 4}
		o.Settings.Policy = routing.Policy{Rules: []routing.Rule{{
			Name: "both", Targets: []routing.Target{{Provider: "acme", Weight: 1}}, Fallback: []routing.Fallback{{Targets: []routing.Target{{Provider: "next", Model: "m"}}}},
		}}}
	})
	r.order("pause", "")
	calls := make([]*call, 4)
	for i := range calls {
		calls[i] = r.chat(plainRequest)
		require.Eventually(t, func() bool { d, err := r.conn.Depth(t.Context(), "acme"); return err == nil && d.Waiting == i+1 }, soon, time.Millisecond)
	}
	// Its fallback has a worker from now on: what waits stays where it is.
	require.NoError(t, r.conn.Announce(queue.Presence{Worker: "worker02", Providers: []queue.ProviderPresence{{Name: "next", MaxQueued: 4}}}))
	alive := func() bool { return r.ingress.workers.alive(inference.Candidate{Provider: "next"}) }
	require.Eventually(t, alive, soon, time.Millisecond)
	for range 30 {
		require.NoError(t, r.conn.Announce(queue.Presence{Worker: "worker02", Providers: []queue.ProviderPresence{{Name: "next", MaxQueued: 4}}}))
		<-time.After(100 * time.Millisecond)
	}
	d, err := r.conn.Depth(t.Context(), "acme")
	require.NoError(t, err)
	require.Equal(t, queue.Depth{Waiting: 4}, d)
	candidates, err := r.ingress.route(r.ingress.current(), store.Key{}, chatFor("m"))
	require.NoError(t, err)
	require.Equal(t, "next", candidates[0].Provider, "a new request goes where it is served")

	r.work()
	r.order("resume", "")
	for range calls {
		k := r.take()
		require.Equal(t, 0, k.job.Epoch, "nothing was published again")
		k.succeed(`{"ok":true}`)
	}
	for _, c := range calls {
		resp, body := c.whole()
		require.Equal(t, http.StatusOK, resp.StatusCode, body)
		require.Equal(t, 1, r.row(resp.Header.Get("X-Sluice-Job-Id")).Attempts)
	}
}

func TestAFullQueueOfAPausedProviderSaysWhen(t *testing.T) {
	t.Parallel()
	r := setup(t, withAcme(1), func(o *Options) { o.Timeout = 3 * time.Second })
	r.order("pause", `{"for":"5m"}`)
	first := r.chat(plainRequest)
	require.Eventually(t, func() bool { d, err := r.conn.Depth(t.Context(), "acme"); return err == nil && d.Waiting == 1 }, soon, time.Millisecond)
	resp := r.chat(plainRequest).fails(http.StatusTooManyRequests, inference.CodeQueueFull)
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	require.NoError(t, err)
	require.InDelta(t, 300, seconds, 10)
	first.fails(http.StatusGatewayTimeout, inference.CodeDeadlineExceeded)
}

func TestOrdersThatCannotBeUnderstood(t *testing.T) {
	t.Parallel()
	r := setup(t)
	for path, cases := range map[string]map[string]string{ // body → the field at fault
		providersPath + "/nobody/pause":                                {"": "provider"},
		providersPath + "/nobody/breakers/reset":                       {"": "provider"},
		adminapi.QueuesPath + "/nobody/purge":                          {`{"lane":"batch"}`: "provider"},
		providersPath + "/acme/pause":                                  {`{"fro":"1m"}`: "fro", `{"for":"soon"}`: "for", `{"for":"0s"}`: "for", `{"for":"1000h"}`: "for", `{"for":1}`: "for", `{"reason":"a\u0000b"}`: "reason", `{"reason":null}`: "reason", `[]`: "", `{"reason":"` + strings.Repeat("r", 257) + `"}`: "reason"},
		providersPath + "/acme/resume":                                 {`{"for":"1m"}`: "for", `{"reason":null}`: "reason", `null`: ""},
		providersPath + "/acme/breakers/reset?modle=m":                 {"": "modle"},
		providersPath + "/acme/breakers/reset":                         {`{"model":"m"}`: "model"},
		adminapi.QueuesPath + "/acme/purge":                            {``: "lane", `{"lane":"fast"}`: "lane", `{"lane":"batch"}`: "lane", `{"lane":"interactive","older_than":"x"}`: "older_than", `{"lanes":1}`: "lanes", `{"lane":"interactive","older_than":null}`: "older_than"},
		adminapi.DeadLettersPath + "/dead_9/requeue":                   {"": "id"},
		adminapi.DeadLettersPath + "/9/requeue":                        {"": "id"},
		adminapi.DeadLettersPath + "/requeue":                          {"": "limit", `{"limit":1001}`: "limit", `{"limit":1,"from":"today"}`: "from", `{"limt":1}`: "limt"},
		adminapi.DeadLettersPath + "/drop":                             {`{"limit":0}`: "limit", `{"limit":1,"reason":"` + strings.Repeat("r", 257) + `"}`: "reason"},
		"GET " + adminapi.DeadLettersPath + "?limit=0":                 {"": "limit"},
		"GET " + adminapi.DeadLettersPath + "?before=x":                {"": "before"},
		"GET " + adminapi.DeadLettersPath + "?lane=x":                  {"": "lane"},
		"GET " + adminapi.DeadLettersPath + "/dead_9?body=yes":         {"": "body"},
		"GET " + adminapi.QueuesPath + "/nobody":                       {"": "provider"},
		"DELETE " + adminapi.DeadLettersPath + "/dead_1":               {"": "id"},
		"GET " + adminapi.DeadLettersPath + "?to=2026-13-01T00:00:00Z": {"": "to"},
	} {
		method := http.MethodPost
		if m, rest, ok := strings.Cut(path, " "); ok {
			method, path = m, rest
		}
		for body, param := range cases {
			w := r.operate(method, path, body, nil)
			require.Contains(t, []int{400, 404}, w.Code, "%s %s: %s", path, body, w.Body)
			require.Equal(t, param, refusal(t, w).Error.Param, "%s %s", path, body)
		}
	}
	var list adminapi.ProviderList
	r.operate(http.MethodGet, providersPath, "", &list)
	require.Equal(t, "active", list.Providers[0].State, "nothing has changed")
}

func TestAPurgedRequestEndsOnceWithAnError(t *testing.T) {
	t.Parallel()
	r := setup(t, withAcme(10))
	other, srv := r.startIngress(withAcme(10))
	r.work()
	r.puller.Bound(1)
	r.order("pause", "") // the script takes what it is given
	inHand := r.chat(plainRequest)
	k := r.take()
	require.NoError(t, r.answer.Hold([]queue.HeldJob{{JobID: k.job.ID, Run: k.run}}))
	require.Eventually(t, func() bool { f := r.ingress.flights.find(k.job.ID); return f != nil && !f.waits() }, soon, time.Millisecond)
	r.puller.Pause()

	waiting := []*call{r.chat(plainRequest), r.chat(streamRequest), r.send(r.request(http.MethodPost, srv.URL+chatPath, plainRequest))}
	require.Eventually(t, func() bool { d, err := r.conn.Depth(t.Context(), "acme"); return err == nil && d.Waiting == 3 }, soon, time.Millisecond)
	var done adminapi.PurgedQueue
	r.operate(http.MethodPost, adminapi.QueuesPath+"/acme/purge", `{"lane":"interactive","older_than":"1h"}`, &done)
	require.Equal(t, adminapi.PurgedQueue{}, done, "nothing is so old")
	require.Eventually(t, func() bool { return other.flights.count() == 1 && r.ingress.flights.count() == 3 }, soon, time.Millisecond)
	r.operate(http.MethodPost, adminapi.QueuesPath+"/acme/purge", `{"lane":"interactive"}`, &done)
	require.Equal(t, adminapi.PurgedQueue{Ended: 3, Kept: 1}, done)
	purged := time.Now()
	var ids []string
	for _, c := range waiting {
		resp, body := c.whole()
		require.Less(t, time.Since(purged), closingWait-time.Second, "at once, before the row is written")
		if strings.HasPrefix(resp.Header.Get("Content-Type"), eventStream) {
			require.Contains(t, body, `"code":"purged"`)
			require.NotContains(t, body, "[DONE]")
		} else {
			require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode, body)
			require.Contains(t, body, `"code":"purged"`)
			require.Equal(t, "10", resp.Header.Get("Retry-After"))
		}
		ids = append(ids, resp.Header.Get("X-Sluice-Job-Id"))
	}
	for _, id := range ids {
		row := r.row(id)
		require.Equal(t, inference.OutcomeCancelled, row.Outcome)
		require.Equal(t, inference.CodePurged, row.ErrorCode)
		require.Zero(t, row.Attempts)
	}
	require.Eventually(t, func() bool {
		d, err := r.conn.Depth(t.Context(), "acme")
		return err == nil && d.Waiting+d.Running == 1
	}, soon, time.Millisecond)
	k.succeed(`{"ok":true}`)
	resp, _ := inHand.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode, "a worker had it")
	require.Equal(t, inference.OutcomeSucceeded, r.row(k.job.ID).Outcome)
	require.Len(t, r.allRows(), 4)
}

// The ingress of a job is gone, and its client with it: its row is written by whoever
// purges.
func TestAPurgedOrphanHasItsRow(t *testing.T) {
	t.Parallel()
	r := setup(t)
	gone := queue.NewJobID("gonegone", time.Now())
	now := time.Now()
	job := &inference.Job{
		ID: gone, RequestID: "req", Kind: inference.KindChat, Lane: inference.LaneInteractive, Tenant: "team", KeyID: "key", Model: "m",
		CreatedAt: now, Deadline: now.Add(time.Hour), Candidates: []inference.Candidate{{Provider: "acme", Model: "m"}}, Body: []byte(`{}`),
	}
	require.Eventually(t, func() bool { return r.ingress.workers.anyQueueReady() }, soon, time.Millisecond)
	require.NoError(t, r.ingress.flights.dispatch.Publish(job, ""))
	require.Eventually(t, func() bool { d, err := r.conn.Depth(t.Context(), "acme"); return err == nil && d.Waiting == 1 }, soon, time.Millisecond)
	var done adminapi.PurgedQueue
	r.operate(http.MethodPost, adminapi.QueuesPath+"/acme/purge", `{"lane":"interactive"}`, &done)
	require.Equal(t, adminapi.PurgedQueue{Ended: 1}, done)
	row := r.row(gone)
	require.Equal(t, []any{"req", "team", "key", inference.CodePurged, 503}, []any{row.RequestID, row.Tenant, row.KeyID, row.ErrorCode, row.Status})
	d, err := r.conn.Depth(t.Context(), "acme")
	require.NoError(t, err)
	require.Zero(t, d.Waiting)
}

// What waits for a provider that was taken out of the configuration, and that no worker
// serves any more, is seen and can be purged as before.
func TestTheQueueOfAForgottenProviderIsSeenTo(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	var shown adminapi.Queue
	require.Equal(t, http.StatusNotFound, r.operate(http.MethodGet, adminapi.QueuesPath+"/nobody", "", nil).Code)
	id := r.later(plainRequest)
	depths := func() []queue.LaneDepth {
		d, err := r.conn.Depths(t.Context(), "acme")
		require.NoError(t, err)
		return d
	}
	require.Eventually(t, func() bool { return depths()[1].Waiting == 1 }, soon, time.Millisecond)
	next := *r.ingress.current()
	next.Providers = nil
	r.ingress.Apply(next)
	r.ingress.workers.expire(time.Now().Add(time.Hour))
	require.NotContains(t, r.ingress.workers.states(), "acme")

	var list adminapi.QueueList
	r.operate(http.MethodGet, adminapi.QueuesPath, "", &list)
	require.Len(t, list.Queues, 1)
	require.Equal(t, []any{"acme", "active", 1}, []any{list.Queues[0].Provider, list.Queues[0].State, list.Queues[0].Lanes[1].Waiting})
	require.Equal(t, "paused", r.order("pause", "").State)
	r.operate(http.MethodGet, adminapi.QueuesPath+"/acme", "", &shown)
	require.Equal(t, "paused", shown.State)
	var providers adminapi.ProviderList
	r.operate(http.MethodGet, providersPath, "", &providers)
	require.Equal(t, []any{"acme", "paused", 0}, []any{providers.Providers[0].Name, providers.Providers[0].State, providers.Providers[0].Workers})
	_, metrics := r.get("/metrics").whole()
	require.Contains(t, metrics, `sluice_queue_oldest_seconds{lane="background",provider="acme"}`)
	var done adminapi.PurgedQueue
	r.operate(http.MethodPost, adminapi.QueuesPath+"/acme/purge", `{"lane":"background"}`, &done)
	require.Equal(t, adminapi.PurgedQueue{Ended: 1}, done)
	require.Equal(t, store.JobCancelled, r.stored(id).Status)
	require.Equal(t, http.StatusNotFound, r.operate(http.MethodGet, adminapi.QueuesPath+"/acme", "", nil).Code)
}

func TestPurgedJobsAreCancelledInTheDatabase(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	ids := []string{r.later(plainRequest), r.later(plainRequest), r.later(plainRequest)}
	depths := func() []queue.LaneDepth {
		d, err := r.conn.Depths(t.Context(), "acme")
		require.NoError(t, err)
		return d
	}
	require.Eventually(t, func() bool { return depths()[1].Waiting == 3 }, soon, time.Millisecond)
	var shown adminapi.Queue
	r.operate(http.MethodGet, adminapi.QueuesPath+"/acme", "", &shown)
	require.Equal(t, 3, shown.Lanes[1].Waiting)
	require.NotNil(t, shown.Lanes[1].Oldest)
	var done adminapi.PurgedQueue
	r.operate(http.MethodPost, adminapi.QueuesPath+"/acme/purge", `{"lane":"batch"}`, &done)
	require.Equal(t, adminapi.PurgedQueue{}, done, "another lane")
	r.operate(http.MethodPost, adminapi.QueuesPath+"/acme/purge", `{"lane":"background"}`, &done)
	require.Equal(t, adminapi.PurgedQueue{Ended: 3}, done)
	require.Zero(t, depths()[1].Waiting)
	for _, id := range ids {
		job := r.stored(id)
		require.Equal(t, store.JobCancelled, job.Status)
		rows, err := r.db.Usage(t.Context(), store.UsageFilter{})
		require.NoError(t, err)
		require.Len(t, rows, 3, "one row each")
		for _, row := range rows {
			require.Equal(t, inference.CodePurged, row.ErrorCode)
			require.Equal(t, inference.OutcomeCancelled, row.Outcome)
		}
	}
	require.NoError(t, r.ingress.stored.reconcileAt(t.Context(), time.Now().Add(time.Hour)))
	require.NoError(t, r.ingress.stored.dispatchWaiting(t.Context()))
	require.Zero(t, depths()[1].Waiting, "nothing brings them back")
	r.operate(http.MethodPost, adminapi.QueuesPath+"/acme/purge", `{"lane":"background"}`, &done)
	require.Zero(t, done.Ended)
}

func TestAcceptedJobsMakeADetourAroundADrainedProvider(t *testing.T) {
	t.Parallel()
	d := directoryOf(map[string]ProviderInfo{"a": {}, "b": {}}, routing.Policy{})
	d.heard(presence("w", queue.ProviderPresence{Name: "a"}, queue.ProviderPresence{Name: "b"}))
	both := []inference.Candidate{{Provider: "a"}, {Provider: "b"}}
	require.Equal(t, both, d.detour(both))
	d.orderedOne("a", queue.Control{State: queue.ProviderDraining})
	require.Equal(t, both[1:], d.detour(both))
	require.Equal(t, both[:1], d.detour(both[:1]), "nobody else can")
	d.orderedOne("b", queue.Control{State: queue.ProviderPaused})
	require.Equal(t, both, d.detour(both), "nobody else does")
	require.Equal(t, "[]", fmt.Sprint(d.detour(nil)))
}
