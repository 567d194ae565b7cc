package ingress

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/internal/webhook"
	"sluice/store"
)

// WebhookStore is what the ingress needs of the database to deliver webhooks, and to let
// an operator see to them.
type WebhookStore interface {
	store.Webhooks
	store.Deliveries
}

// WebhookOptions are what webhooks are sent by. Without a Store none are.
type WebhookOptions struct {
	Store        WebhookStore
	AllowPrivate bool // private networks and plain http may be called
	Timeout      time.Duration
	MaxEndpoints int // of one tenant
	Keep         time.Duration
}

// Bounds of the deliveries of one ingress.
const (
	hookPoll     = time.Second
	hooksAtOnce  = 64
	hooksPerLane = 4 // to one endpoint, by all ingresses
	hookPrune    = time.Minute
	hooksPruned  = 1000 // events in one statement

	// hookMargin is what a lease has beyond the attempt's own time, for the database to
	// take down what came of it.
	hookMargin = 15 * time.Second
)

// hooks delivers webhooks: it takes what is due from the database, a few at once and
// fairly between endpoints, and notes what came of it. Every ingress does; a delivery that
// one of them leaves behind is due for the others when its lease ends.
type hooks struct {
	opt  WebhookOptions
	send func(context.Context, webhook.Message) webhook.Result
	log  *slog.Logger
	poll time.Duration // hookPoll, but for tests of days

	wake     chan struct{}
	attempts sync.WaitGroup
	running  atomic.Int64
	outcomes *prometheus.CounterVec
}

func newHooks(o WebhookOptions, m *Metrics, log *slog.Logger) *hooks {
	h := &hooks{
		opt: o, log: log, poll: hookPoll, wake: make(chan struct{}, 1),
		send: webhook.NewSender(webhook.SenderOptions{Timeout: o.Timeout, AllowPrivate: o.AllowPrivate}).Send,
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_webhook_attempts_total", Help: "Attempts to deliver a webhook by what came of them.",
		}, []string{"outcome"}),
	}
	if o.Store != nil {
		m.reg.MustRegister(h.outcomes)
	}
	return h
}

// nudge has the loop look for deliveries now. It is called after the commit of what
// appended events.
func (h *hooks) nudge() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// run delivers until ctx ends, and returns when the attempts on their way have ended, too:
// each of them is bounded by its timeout.
func (h *hooks) run(ctx context.Context) {
	if h.opt.Store == nil {
		return
	}
	defer h.attempts.Wait()
	tick := time.NewTicker(h.poll)
	defer tick.Stop()
	for said := ""; ; {
		said = h.told(ctx, "deliver", said, h.deliver(ctx))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-h.wake:
		}
	}
}

// told logs an error that is neither the one told last nor the end's, and returns which was.
func (h *hooks) told(ctx context.Context, doing, said string, err error) string {
	if err == nil || ctx.Err() != nil {
		return ""
	}
	if said != err.Error() {
		h.log.Warn("the database does not serve webhooks", "doing", doing, "error", err)
	}
	return err.Error()
}

// deliver begins as many attempts as there is room for.
func (h *hooks) deliver(ctx context.Context) error {
	free := hooksAtOnce - int(h.running.Load())
	if free <= 0 {
		return nil
	}
	due, err := h.opt.Store.LeaseDeliveries(ctx, store.LeaseRequest{
		Lease: rand.Text(), For: h.opt.Timeout + hookMargin, Most: free, PerLane: hooksPerLane,
	})
	if err != nil {
		return err
	}
	for _, d := range due {
		h.running.Add(1)
		// An attempt on its way is not cut off by the ingress's end: it would be made twice.
		h.attempts.Go(func() {
			defer h.nudge() // there is room again
			defer h.running.Add(-1)
			h.attempt(context.WithoutCancel(ctx), d)
		})
	}
	return nil
}

// attempt makes one attempt and notes what came of it. What cannot be noted is made again
// when the lease ends, under the same id.
func (h *hooks) attempt(ctx context.Context, d store.Delivery) {
	result := h.call(ctx, d)
	a := store.Attempt{
		Delivery: d, At: result.At, Took: result.Took, Status: result.Status, Failure: result.Failure,
		Pause: result.RetryAfter, Gone: result.Gone(), DisableAfter: webhook.DisableAfter,
	}
	a.State, a.Wait = verdict(result, d.Failed+1, mathrand.Float64())
	h.outcomes.WithLabelValues(hookOutcome(a)).Inc()
	disabled, err := h.opt.Store.FinishAttempt(ctx, a)
	switch {
	case errors.Is(err, store.ErrLeaseLost):
		h.log.Debug("webhook was not ours any more when it was answered", "event_id", d.Event.ID, "webhook_id", d.WebhookID)
	case err != nil:
		h.log.Warn("webhook attempt not noted; it will be made again", "event_id", d.Event.ID, "webhook_id", d.WebhookID, "error", err)
	case disabled != "":
		h.log.Warn("webhook is disabled", "webhook_id", d.WebhookID, "tenant", d.Event.Tenant, "reason", disabled)
	case a.State == store.DeliveryFailed:
		h.log.Warn("webhook given up", "event_id", d.Event.ID, "webhook_id", d.WebhookID, "status", a.Status, "failure", a.Failure)
	}
}

// call sends the delivery, with the tenant's own secret if it goes to no endpoint.
func (h *hooks) call(ctx context.Context, d store.Delivery) webhook.Result {
	failed := webhook.Result{At: time.Now(), Failure: webhook.FailedSecret}
	if len(d.Secrets) == 0 {
		secret, err := h.opt.Store.TenantSecret(ctx, d.Event.Tenant, webhook.NewSecret())
		if err != nil {
			h.log.Warn("webhook has no secret", "event_id", d.Event.ID, "error", err)
			return failed
		}
		d.Secrets = []webhook.Secret{secret}
	}
	body, err := webhook.Body(d.Event.ID, d.Event.Type, d.Event.ObjectID, d.Event.CreatedAt)
	if err != nil {
		h.log.Error("webhook not encoded", "event_id", d.Event.ID, "error", err)
		return failed
	}
	return h.send(ctx, webhook.Message{URL: d.URL, EventID: d.Event.ID, Body: body, Secrets: d.Secrets})
}

// verdict says what follows an attempt: it is the failed one of that number, if it failed.
func verdict(r webhook.Result, failed int, chance float64) (store.DeliveryState, time.Duration) {
	if r.Delivered() {
		return store.DeliveryDelivered, 0
	}
	wait, again := webhook.Wait(failed, chance, r.RetryAfter)
	if r.Gone() || !again {
		return store.DeliveryFailed, 0
	}
	return store.DeliveryPending, wait
}

func hookOutcome(a store.Attempt) string {
	switch a.State {
	case store.DeliveryDelivered:
		return "delivered"
	case store.DeliveryFailed:
		return "given_up"
	}
	return "failed"
}

// prune removes what is old until ctx ends.
func (h *hooks) prune(ctx context.Context) {
	if h.opt.Store == nil {
		return
	}
	tick := time.NewTicker(hookPrune)
	defer tick.Stop()
	for said := ""; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var err error
		for n := hooksPruned; n == hooksPruned && err == nil; {
			n, err = h.opt.Store.PruneEvents(ctx, h.opt.Keep, hooksPruned)
		}
		said = h.told(ctx, "prune", said, err)
	}
}
