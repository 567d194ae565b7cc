package ingress

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/gorilla/mux"

	administration "sluice/internal/admin"
	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/store"
)

// change is what the request's operator is about to change: what it is called, such as
// queue.purge, what it is made to, such as queue:openai, and how that is before and will be
// after; nil where there is nothing to say. Nothing secret may be in them.
type change struct {
	action, target string
	before, after  any
}

// What an entry's action ends with that tells what came of an earlier one of the same
// request.
const (
	auditFailed = ".failed"
	auditDone   = ".done"
)

// failedAudit is what there is to say about a change that was not made, or not whole.
type failedAudit struct {
	Code inference.ErrorCode `json:"code"`
	Done any                 `json:"done,omitempty"` // what was made of it all the same
}

// partError is the error of a change that was made in part.
type partError struct {
	error
	done any
}

func (p *partError) Unwrap() error { return p.error }

// audited makes a change, and remembers it before: nothing is changed that the audit does
// not know of. If the change fails then, the audit is told that, too.
//
// Keys and tenants need none of it: the database writes about them by itself.
func (s *Ingress) audited(r *http.Request, c change, do func() error) error {
	if err := s.appendAudit(r.Context(), r, c); err != nil {
		return fmt.Errorf("nothing is changed that the audit does not know of: %w", err)
	}
	err := do()
	if err == nil {
		return nil
	}
	said := failedAudit{Code: administration.Answerable(err).Code}
	if p, ok := errors.AsType[*partError](err); ok {
		said.Done = p.done
	}
	s.auditOutcome(r, change{action: c.action + auditFailed, target: c.target, after: said})
	return err
}

// auditedMany is audited for a change of which it is known only afterwards what it came to. do
// returns that; where it fails, it is what was done all the same. before and after of the
// change stand in the entry before it, and before in the one about what it came to.
func (s *Ingress) auditedMany(r *http.Request, c change, do func() (came any, err error)) error {
	var came any
	err := s.audited(r, c, func() (err error) {
		if came, err = do(); err != nil && came != nil {
			return &partError{err, came}
		}
		return err
	})
	if err == nil {
		s.auditOutcome(r, change{c.action + auditDone, c.target, c.before, came})
	}
	return err
}

// auditedIDs bounds how much of what was changed an entry names.
const auditedIDs = 100

// firstIDs are as many of them as an entry names.
func firstIDs[T any](all []T) []T { return all[:min(len(all), auditedIDs)] }

// purgeAudit is what of the cache is to be forgotten.
type purgeAudit struct {
	All    bool   `json:"all,omitempty"`
	Model  string `json:"model,omitempty"`
	Tenant string `json:"tenant,omitempty"`
	Key    string `json:"key,omitempty"` // its id
}

// cacheAudit, queueAudit and lettersAudit are what a change of many came to: how many, and
// which were the first of them.
type (
	cacheAudit struct {
		Deleted int `json:"deleted"`
	}
	queueAudit struct {
		adminapi.PurgedQueue
		IDs []string `json:"ids,omitempty"` // of jobs that were ended
	}
	lettersAudit struct {
		Requeued int               `json:"requeued,omitempty"`
		Dropped  int               `json:"dropped,omitempty"`
		IDs      []string          `json:"ids,omitempty"` // of letters that went
		Stay     int               `json:"stay,omitempty"`
		Failed   map[string]string `json:"failed,omitempty"` // letters that stay, with the reason in a word
	}
)

// auditedLetters is what became of the letters, dropped ones by their ids.
func auditedLetters(done *adminapi.LettersDone, dropped []string) lettersAudit {
	said := lettersAudit{Requeued: len(done.Requeued), Dropped: done.Dropped, IDs: firstIDs(dropped), Stay: len(done.Failed)}
	for _, r := range done.Requeued[:min(len(done.Requeued), auditedIDs)] {
		said.IDs = append(said.IDs, r.ID)
	}
	for _, f := range done.Failed[:min(len(done.Failed), auditedIDs)] {
		if said.Failed == nil {
			said.Failed = make(map[string]string)
		}
		said.Failed[f.ID] = f.Code
	}
	return said
}

// auditTimeout bounds how long it may take to say what came of a change.
const auditTimeout = 5 * time.Second

// auditOutcome remembers what came of a change that the audit knows of. Its operator may be
// gone by then.
func (s *Ingress) auditOutcome(r *http.Request, c change) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), auditTimeout)
	defer cancel()
	if err := s.appendAudit(ctx, r, c); err != nil {
		s.log.Error("the audit does not know what came of a change", "request_id", r.Header.Get(requestIDHeader), "action", c.action, "target", c.target, "error", err)
	}
}

func (s *Ingress) appendAudit(ctx context.Context, r *http.Request, c change) error {
	return s.remember(ctx, store.Change{Actor: actorOf(r), At: time.Now(), RequestID: r.Header.Get(requestIDHeader)}, c)
}

func (s *Ingress) remember(ctx context.Context, by store.Change, c change) error {
	if s.opt.Admin == nil {
		return nil // there is no database that could remember it
	}
	entry, err := by.Entry(c.action, c.target, c.before, c.after)
	if err != nil {
		return err
	}
	return s.opt.Admin.AppendAudit(ctx, entry)
}

// webhookAudit is an endpoint as the audit shows it.
type webhookAudit struct {
	Tenant      string     `json:"tenant"`
	URL         string     `json:"url"` // without what may be a secret of its receiver
	Events      []string   `json:"events"`
	DisabledAt  *time.Time `json:"disabled_at,omitempty"`
	DisabledFor string     `json:"disabled_for,omitempty"`
}

// overlapAudit is what there is to say about a new secret.
type overlapAudit struct {
	Overlap string `json:"overlap"`
}

func webhookTarget(id string) string { return "webhook:" + id }

// auditedWebhook leaves of an endpoint's address the scheme and the host: with many receivers
// the path is the secret. An endpoint never gets another address, so that nothing that
// changes is lost by it.
func auditedWebhook(h store.Webhook) any {
	var origin string
	if u, err := url.Parse(h.URL); err == nil {
		origin = (&url.URL{Scheme: u.Scheme, Host: u.Host}).String()
	}
	return webhookAudit{h.Tenant, origin, append([]string{}, h.Events...), timeOrNull(h.DisabledAt), h.DisabledFor}
}

// changeWebhook makes a change of the endpoint that the request names. after makes of the
// endpoint what the audit says that it will be.
func (s *Ingress) changeWebhook(r *http.Request, action string, after func(store.Webhook) any, do func(id string) error) error {
	h, err := s.opt.Webhooks.Store.Webhook(r.Context(), mux.Vars(r)["id"])
	if err != nil {
		return webhookError(err)
	}
	return s.audited(r, change{action, webhookTarget(h.ID), auditedWebhook(h), after(h)}, func() error {
		return webhookError(do(h.ID))
	})
}
