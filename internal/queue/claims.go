package queue

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"sluice/internal/inference"
)

// Bounds of hearing claims on stored jobs: how many are judged at once, and how many more
// may wait for that. Whoever asked has given up long before so many are judged.
const (
	claimsAtOnce  = 32
	claimsWaiting = 4096
	claimsBytes   = 16 << 20
)

// ClaimStored asks any ingress whether a stored job that a worker has is still wanted. The
// error is as Claim's: it wraps ErrNoIngress when there is no ingress that hears it.
func (a *Answerer) ClaimStored(ctx context.Context, lane inference.Lane, c Claim) (Judgement, error) {
	return a.conn.ask(ctx, storedClaimSubject(lane, c.JobID), c)
}

// Hearing is an ingress's share in the claims of one lane's jobs.
type Hearing struct {
	conn  *Conn
	judge func(context.Context, Claim) (Judgement, error)
	sub   *nats.Subscription
	slots chan struct{}

	hearing sync.Mutex // held while a claim is taken up
	closed  bool
	judging sync.WaitGroup
}

// HearClaims has judge decide on claims of the lane's jobs. Each claim is heard by one of
// all the ingresses that listen. Calls come from several goroutines, a bounded number at
// once, and have as long as the worker waits for the answer. After an error it gets none,
// and asks again.
func (c *Conn) HearClaims(lane inference.Lane, judge func(ctx context.Context, claim Claim) (Judgement, error)) (*Hearing, error) {
	h := &Hearing{conn: c, judge: judge, slots: make(chan struct{}, claimsAtOnce)}
	subject := storedClaimSubject(lane, "*")
	sub, err := c.nc.QueueSubscribe(subject, claimGroup, h.heard)
	if err == nil {
		err = sub.SetPendingLimits(claimsWaiting, claimsBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("subscribe %s: %w", subject, err)
	}
	h.sub = sub
	return h, nil
}

// Close stops hearing: judge is not running any more once it has returned, and what it
// decided was sent.
func (h *Hearing) Close() {
	_ = h.sub.Unsubscribe() // it fails only when the connection is closed, and all is silent then
	h.hearing.Lock()
	h.closed = true
	h.hearing.Unlock()
	h.judging.Wait()
}

func (h *Hearing) heard(m *nats.Msg) {
	h.hearing.Lock()
	defer h.hearing.Unlock()
	if h.closed {
		return
	}
	claim, err := decodeClaim(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:], m.Data)
	if err != nil || !ValidJobID(claim.JobID) {
		h.conn.log.Warn("claim dropped", "subject", m.Subject, "error", errFrame)
		return
	}
	h.slots <- struct{}{} // one is free as soon as the shortest of the judgements is done
	h.judging.Go(func() {
		defer func() { <-h.slots }()
		ctx, cancel := context.WithTimeout(context.Background(), claimTimeout)
		defer cancel()
		h.answer(ctx, m, claim)
	})
}

func (h *Hearing) answer(ctx context.Context, m *nats.Msg, claim Claim) {
	began := time.Now()
	j, err := h.judge(ctx, claim)
	if err == nil {
		err = m.Respond(j.encode())
	}
	if err != nil {
		h.conn.log.Debug("claim on a stored job not answered", "job_id", claim.JobID, "after", time.Since(began), "error", err)
	}
}
