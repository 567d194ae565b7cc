package ingress

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/gorilla/mux"

	administration "sluice/internal/admin"
	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
)

// routeOperations adds what an operator does about providers, queues and dead letters.
func (s *Ingress) routeOperations(r *mux.Router) {
	r.HandleFunc(providersPath, s.listProviders).Methods(http.MethodGet)
	one := providersPath + "/{provider}"
	r.HandleFunc(one+adminapi.PausePath, s.changeProvider(queue.ProviderPaused)).Methods(http.MethodPost)
	r.HandleFunc(one+adminapi.DrainPath, s.changeProvider(queue.ProviderDraining)).Methods(http.MethodPost)
	r.HandleFunc(one+adminapi.ResumePath, s.changeProvider(queue.ProviderActive)).Methods(http.MethodPost)
	r.HandleFunc(one+adminapi.ResetPath, s.resetBreakers).Methods(http.MethodPost)
	r.HandleFunc(adminapi.QueuesPath, s.listQueues).Methods(http.MethodGet)
	r.HandleFunc(adminapi.QueuesPath+"/{provider}", s.showQueue).Methods(http.MethodGet)
	r.HandleFunc(adminapi.QueuesPath+"/{provider}"+adminapi.PurgePath, s.purgeLane).Methods(http.MethodPost)
	s.routeDeadLetters(r)
}

// operated returns every provider that operators see to: those that are known, and those
// of which nothing is left but jobs in the queue.
func (s *Ingress) operated(ctx context.Context) (map[string]providerState, error) {
	holding, err := s.conn.Holding(ctx)
	if err != nil {
		return nil, errQueueGone(err)
	}
	return s.workers.statesWith(holding), nil
}

// namedProvider returns the provider that the path names.
func (s *Ingress) namedProvider(r *http.Request) (string, providerState, error) {
	name := mux.Vars(r)["provider"]
	p, ok := s.workers.states()[name]
	if !ok {
		all, err := s.operated(r.Context())
		if err != nil {
			return "", p, err
		}
		p, ok = all[name]
	}
	if !ok {
		return "", p, &inference.Error{Code: inference.CodeNotFound, Param: "provider", Message: "The configuration names no provider of this name, no worker serves one, and no job waits for it."}
	}
	return name, p, nil
}

// listProviders serves GET /admin/v1/providers: every provider as routing sees it, which is
// known also while the server cannot be asked for queues.
func (s *Ingress) listProviders(w http.ResponseWriter, r *http.Request) {
	list := adminapi.ProviderList{Providers: []adminapi.Provider{}}
	states, err := s.operated(r.Context())
	if err != nil {
		states = s.workers.states()
	}
	for _, name := range slices.Sorted(maps.Keys(states)) {
		list.Providers = append(list.Providers, s.shownProvider(r.Context(), name, states[name]))
	}
	s.writeJSON(w, r, list)
}

func (s *Ingress) shownProvider(ctx context.Context, name string, p providerState) adminapi.Provider {
	order := p.inForce(time.Now())
	shown := adminapi.Provider{
		Name: name, State: string(p.state()), Reason: order.Reason, Since: timeOrNull(order.Since), Until: timeOrNull(order.Until),
		Workers: p.Workers, Slots: p.Slots, Refused: p.Refused, Limit: p.Limit, InFlight: p.InFlight, Held: p.Held, Waiting: p.Waiting,
		MaxQueued: p.Queued, Rate: p.Rate, Models: append([]string{}, p.Models...), Breakers: make(map[string]string, len(p.States)),
	}
	for _, m := range p.States {
		shown.Breakers[m.Model] = m.Breaker
	}
	lanes, err := s.shownLanes(ctx, name)
	if err != nil {
		s.log.Warn("queue of provider not looked up", "provider", name, "error", err)
	}
	shown.Queue = lanes
	return shown
}

// shownLanes asks the server what stands in the provider's queue.
func (s *Ingress) shownLanes(ctx context.Context, provider string) ([]adminapi.Lane, error) {
	lanes := []adminapi.Lane{}
	depths, err := s.conn.Depths(ctx, provider)
	if err != nil {
		return lanes, err
	}
	now := time.Now()
	for _, d := range depths {
		lane := adminapi.Lane{
			Lane: string(d.Lane), Waiting: d.Waiting, Running: d.Running, Oldest: timeOrNull(d.Oldest), Bound: d.Bound, Bytes: d.Bytes,
		}
		if !d.Oldest.IsZero() {
			lane.OldestSeconds = max(now.Sub(d.Oldest).Seconds(), 0)
		}
		lanes = append(lanes, lane)
	}
	return lanes, nil
}

// Bounds of what an operator says of a provider.
const (
	reasonMost = 256 // bytes
	orderLeast = time.Second
	orderMost  = 30 * 24 * time.Hour
)

// changeProvider serves POST …/pause, …/drain and …/resume. What is asked for again begins
// anew.
func (s *Ingress) changeProvider(state queue.ProviderState) http.HandlerFunc {
	verb := map[queue.ProviderState]string{queue.ProviderPaused: "pause", queue.ProviderDraining: "drain", queue.ProviderActive: "resume"}[state]
	return func(w http.ResponseWriter, r *http.Request) {
		name, p, err := s.namedProvider(r)
		if err != nil {
			s.adminFail(w, r, err)
			return
		}
		word, err := readOrder(w, r, state)
		if err == nil {
			err = s.audited(r, change{"provider." + verb, "provider:" + name, p.inForce(time.Now()), word}, func() error {
				return queueError(s.conn.SetControl(r.Context(), name, word))
			})
		}
		if err != nil {
			s.adminFail(w, r, err)
			return
		}
		s.logOrder(name, word)
		s.workers.orderedOne(name, word)
		now := s.workers.statesWith(map[string]bool{name: true})
		s.writeJSON(w, r, s.shownProvider(r.Context(), name, now[name]))
	}
}

// logOrder leaves out an end that nobody has set.
func (s *Ingress) logOrder(provider string, word queue.Control) {
	said := []any{"provider", provider, "state", string(word.State)}
	if !word.Until.IsZero() {
		said = append(said, "until", word.Until)
	}
	s.log.Info("operator changed a provider", said...)
}

func readOrder(w http.ResponseWriter, r *http.Request, state queue.ProviderState) (queue.Control, error) {
	var req adminapi.ChangeProvider
	word := queue.Control{State: state, Since: time.Now().UTC()}
	var err error
	if state == queue.ProviderActive {
		var resume adminapi.ResumeProvider
		err = administration.Read(w, r, &resume)
		req.Reason = resume.Reason
	} else {
		err = administration.Read(w, r, &req)
	}
	if err != nil {
		return word, err
	}
	if len(req.Reason) > reasonMost || strings.ContainsFunc(req.Reason, unicode.IsControl) {
		return word, invalidField("reason", "reason must be at most %d bytes long and hold no control character.", reasonMost)
	}
	word.Reason = req.Reason
	if req.For != "" {
		d, err := time.ParseDuration(req.For)
		if err != nil || d < orderLeast || d > orderMost {
			return word, invalidField("for", `for must be a time from %q to %q, such as "30m".`, orderLeast, orderMost)
		}
		word.Until = word.Since.Add(d)
	}
	return word, nil
}

// resetBreakers serves POST …/breakers/reset: the workers close breakers, and try anew.
func (s *Ingress) resetBreakers(w http.ResponseWriter, r *http.Request) {
	name, p, err := s.namedProvider(r)
	model := r.URL.Query().Get("model")
	if err == nil && (len(model) > openaiapi.MaxModelBytes || strings.ContainsFunc(model, unicode.IsControl)) {
		err = invalidField("model", "model must be at most %d bytes long and hold no control character.", openaiapi.MaxModelBytes)
	}
	done := adminapi.BreakersReset{Workers: p.Workers}
	if err == nil {
		said := map[string]string{"model": model}
		err = s.audited(r, change{"provider.reset_breakers", "provider:" + name, nil, said}, func() (err error) {
			done.Heard, done.Closed, err = s.conn.ResetBreakers(r.Context(), name, model, p.Workers)
			return queueError(err)
		})
	}
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	s.writeJSON(w, r, done)
}

// listQueues serves GET /admin/v1/queues.
func (s *Ingress) listQueues(w http.ResponseWriter, r *http.Request) {
	list := adminapi.QueueList{Queues: []adminapi.Queue{}}
	states, err := s.operated(r.Context())
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(states)) {
		p := states[name]
		lanes, err := s.shownLanes(r.Context(), name)
		if err != nil {
			s.adminFail(w, r, errQueueGone(err))
			return
		}
		list.Queues = append(list.Queues, adminapi.Queue{Provider: name, State: string(p.state()), Lanes: lanes})
	}
	s.writeJSON(w, r, list)
}

// showQueue serves GET /admin/v1/queues/{provider}.
func (s *Ingress) showQueue(w http.ResponseWriter, r *http.Request) {
	name, p, err := s.namedProvider(r)
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	lanes, err := s.shownLanes(r.Context(), name)
	if err != nil {
		s.adminFail(w, r, errQueueGone(err))
		return
	}
	s.writeJSON(w, r, adminapi.Queue{Provider: name, State: string(p.state()), Lanes: lanes})
}

// purgeLane serves POST /admin/v1/queues/{provider}/purge.
func (s *Ingress) purgeLane(w http.ResponseWriter, r *http.Request) {
	name, _, err := s.namedProvider(r)
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	lane, before, req, err := s.readPurge(w, r)
	var done adminapi.PurgedQueue
	if err == nil {
		err = s.auditedMany(r, change{"queue.purge", "queue:" + name, nil, req}, func() (came any, err error) {
			var ids []string
			done, ids, err = s.purgeQueue(r.Context(), name, lane, before)
			s.log.Info("operator purged a queue", "provider", name, "lane", string(lane), "ended", done.Ended, "kept", done.Kept)
			return queueAudit{done, ids}, queueError(err)
		})
	}
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	s.writeJSON(w, r, done)
}

// queueError is an error of the queue as it is answered, unless it says that by itself.
func queueError(err error) error {
	if _, told := errors.AsType[*inference.Error](err); err == nil || told {
		return err
	}
	return errQueueGone(err)
}

func (s *Ingress) readPurge(w http.ResponseWriter, r *http.Request) (lane inference.Lane, before time.Time, req adminapi.PurgeQueue, err error) {
	if err = administration.Read(w, r, &req); err != nil {
		return "", before, req, err
	}
	lane = inference.Lane(req.Lane)
	if !slices.Contains(queue.Lanes[:], lane) {
		return "", before, req, invalidField("lane", "lane must be interactive, background or batch.")
	}
	if lane.Stored() && s.stored == nil {
		return "", before, req, invalidField("lane", "This ingress has no stored jobs.")
	}
	if req.OlderThan != "" {
		d, err := time.ParseDuration(req.OlderThan)
		if err != nil || d < 0 || d > orderMost {
			return "", before, req, invalidField("older_than", `older_than must be a time from "0s" to %q, such as "10m".`, orderMost)
		}
		before = time.Now().Add(-d)
	}
	return lane, before, req, nil
}
