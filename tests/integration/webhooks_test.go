package integration

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
	"sluice/internal/webhook"
	"sluice/store"
)

// hookToken stands in a receiver's address; it must never be logged.
const hookToken = "receiver-token-0123456789"

// receiver is a tenant's server. It takes what OpenAI's client verifies, and counts.
type receiver struct {
	*httptest.Server
	secret webhook.Secret

	mu      sync.Mutex
	seen    map[string]int // by webhook-id
	refused int
	kinds   map[string]bool
}

func (s *stack) receiver() *receiver {
	r := &receiver{seen: make(map[string]int), kinds: make(map[string]bool), secret: webhook.NewSecret()}
	r.Server = httptest.NewServer(http.HandlerFunc(r.take))
	s.t.Cleanup(r.Close)
	s.logs.forbid(r.secret.Reveal())
	s.logs.forbid(hookToken)
	return r
}

func (r *receiver) take(w http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(q.Body)
	client := openai.NewClient(option.WithAPIKey("unused"), option.WithWebhookSecret(r.secret.Reveal()))
	r.mu.Lock()
	defer r.mu.Unlock()
	event, unwrapErr := client.Webhooks.Unwrap(body, q.Header)
	if err != nil || unwrapErr != nil || event.ID != q.Header.Get("webhook-id") {
		r.refused++
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.seen[event.ID]++
	r.kinds[event.Type+" "+event.Data.ID] = true
}

func (r *receiver) count() (events, deliveries, refused int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.seen {
		deliveries += n
	}
	return len(r.seen), deliveries, r.refused
}

func (s *stack) addHook(r *receiver, url string) store.Webhook {
	s.t.Helper()
	w, err := s.db.CreateWebhook(s.t.Context(), store.Webhook{ID: webhook.NewEndpointID(), Tenant: tenant, URL: url}, r.secret, 100)
	require.NoError(s.t, err)
	return w
}

// Two ingresses share the deliveries: each event reaches each endpoint once, signed for
// it, on both databases.
func TestWebhooksAreDeliveredOnce(t *testing.T) {
	t.Parallel()
	for name, database := range map[string]func(testing.TB) string{"sqlite": func(testing.TB) string { return "" }, "postgres": testkit.Postgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, func(o *options) { o.ingresses, o.workers, o.private, o.database = 2, 0, true, database(t) })
			a, b := s.receiver(), s.receiver()
			s.addHook(a, a.URL+"/in?token="+hookToken)
			s.addHook(b, b.URL+"/"+hookToken)
			const events = 60
			for i := range events {
				kind := webhook.Types()[i%len(webhook.Types())]
				_, err := s.db.AppendEvent(t.Context(), store.NewEvent(tenant, kind, "object_1"))
				require.NoError(t, err)
			}
			s.eventually(func() bool {
				reports, err := s.db.Deliveries(t.Context(), store.DeliveryFilter{State: store.DeliveryDelivered, Limit: store.MaxPage})
				return err == nil && len(reports) == 2*events
			}, "all delivered")
			for _, r := range []*receiver{a, b} {
				got, deliveries, refused := r.count()
				require.Equal(t, []int{events, events, 0}, []int{got, deliveries, refused})
				for _, kind := range webhook.Types() {
					require.True(t, r.kinds[kind+" object_1"], kind)
				}
			}
			var text strings.Builder
			for _, d := range s.doors {
				resp, err := s.http.Get(d.url + "/metrics")
				require.NoError(t, err)
				_, err = io.Copy(&text, resp.Body)
				require.NoError(t, err)
				require.NoError(t, resp.Body.Close())
			}
			require.Contains(t, text.String(), `sluice_webhook_attempts_total{outcome="delivered"}`)
		})
	}
}

// Without leave nothing on this machine is reached, though the database names it.
func TestWebhooksReachNothingPrivate(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.workers = 0 })
	r := s.receiver()
	secure := httptest.NewTLSServer(http.HandlerFunc(r.take))
	t.Cleanup(secure.Close)
	port := secure.URL[strings.LastIndex(secure.URL, ":"):]
	want := make(map[string]string)
	for url, failure := range map[string]string{
		r.URL: webhook.FailedURL, secure.URL: webhook.FailedForbidden, "https://localhost" + port: webhook.FailedForbidden,
		"https://[::ffff:127.0.0.1]" + port:    webhook.FailedForbidden,
		"https://127.0.0.1.nip.invalid" + port: webhook.FailedName,
	} {
		want[s.addHook(r, url).ID] = failure
	}
	e := store.NewEvent(tenant, webhook.JobFailed, "job_1")
	_, err := s.db.AppendEvent(t.Context(), e)
	require.NoError(t, err)
	tried := func() []store.DeliveryReport {
		reports, err := s.db.Deliveries(t.Context(), store.DeliveryFilter{EventID: e.ID})
		require.NoError(t, err)
		var list []store.DeliveryReport
		for _, d := range reports {
			if len(d.Log) > 0 {
				list = append(list, d)
			}
		}
		return list
	}
	s.eventually(func() bool { return len(tried()) == len(want) }, "all tried")
	for _, d := range tried() {
		require.Equal(t, want[d.WebhookID], d.Log[0].Failure)
		require.Equal(t, store.DeliveryPending, d.State, "it may be mended")
	}
	got, _, refused := r.count()
	require.Zero(t, got+refused)
}
