package worker

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func failed(code inference.ErrorCode) *inference.Error { return &inference.Error{Code: code} }

func refusal(r inference.Refusal) *inference.Error {
	return &inference.Error{Code: inference.CodeUpstreamRejected, Refusal: r}
}

func TestDispose(t *testing.T) {
	t.Parallel()
	var (
		down    = failed(inference.CodeUpstreamUnavailable)
		slow    = failed(inference.CodeUpstreamTimeout)
		limited = failed(inference.CodeUpstreamRateLimited)
		long    = refusal(inference.RefusalContext)
		client  = failed(inference.CodeUpstreamRejected)
	)
	for name, c := range map[string]struct {
		o    outlook
		want disposition
	}{
		"answered":                        {outlook{left: time.Minute, next: true, peers: true}, toAnswer},
		"failed for good":                 {outlook{err: down, left: time.Minute}, toAnswer},
		"failed, a peer":                  {outlook{err: down, left: time.Minute, peers: true}, toGiveBack},
		"failed, a peer and a next":       {outlook{err: down, left: time.Minute, peers: true, next: true}, toGiveBack},
		"failed, a next":                  {outlook{err: down, left: time.Minute, next: true}, toForward},
		"timed out, a peer":               {outlook{err: slow, left: time.Minute, peers: true}, toGiveBack},
		"timed out, a next":               {outlook{err: slow, left: time.Minute, next: true}, toForward},
		"failed in a stream":              {outlook{err: down, left: time.Minute, started: true, peers: true, next: true}, toAnswer},
		"the client's fault":              {outlook{err: client, left: time.Minute, peers: true, next: true}, toAnswer},
		"too long, a peer":                {outlook{err: long, left: time.Minute, peers: true}, toAnswer},
		"too long, a next":                {outlook{err: long, left: time.Minute, peers: true, next: true}, toForward},
		"breaker open":                    {outlook{err: down, blocked: true, wait: time.Second, left: time.Minute}, toHold},
		"breaker open, a peer":            {outlook{err: down, blocked: true, wait: time.Second, left: time.Minute, peers: true}, toGiveBack},
		"breaker open, a next":            {outlook{err: down, blocked: true, wait: time.Second, left: time.Minute, next: true, patience: time.Hour}, toForward},
		"breaker open, leaving":           {outlook{err: down, blocked: true, wait: time.Second, left: time.Minute, leaving: true}, toGiveBack},
		"breaker open beyond deadline":    {outlook{err: down, blocked: true, wait: time.Minute, left: time.Minute}, toHold},
		"breaker half open":               {outlook{err: down, blocked: true, left: time.Minute}, toHold},
		"429, no word of when":            {outlook{err: limited, left: time.Minute}, toAnswer},
		"429, no word of when, a next":    {outlook{err: limited, left: time.Minute, next: true}, toForward},
		"429, a short wait":               {outlook{err: limited, wait: time.Second, left: time.Minute, patience: time.Second, next: true, peers: true}, toHold},
		"429, a long wait, a next":        {outlook{err: limited, wait: time.Second + 1, left: time.Minute, patience: time.Second, next: true}, toForward},
		"429, a long wait, no next":       {outlook{err: limited, wait: time.Second + 1, left: time.Minute, patience: time.Second}, toHold},
		"429, a peer has the same keys":   {outlook{err: limited, wait: time.Second, left: time.Minute, peers: true}, toHold},
		"429 beyond the deadline":         {outlook{err: limited, wait: time.Minute, left: time.Minute, patience: time.Hour}, toAnswer},
		"429 beyond the deadline, a next": {outlook{err: limited, wait: time.Minute, left: time.Minute, patience: time.Hour, next: true}, toForward},
		"429, a short wait, leaving":      {outlook{err: limited, wait: time.Second, left: time.Minute, patience: time.Minute, leaving: true}, toGiveBack},
		"429, leaving, a next":            {outlook{err: limited, wait: time.Second, left: time.Minute, patience: time.Minute, leaving: true, next: true}, toForward},
		"failed, leaving":                 {outlook{err: down, left: time.Minute, leaving: true}, toAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, dispose(c.o))
		})
	}
}

// Whatever else is known: a client that has seen a chunk gets no second answer, a fault
// of its own stays one, and nothing waits beyond its deadline.
func TestDisposeNeverRepeatsWhatMustNotBe(t *testing.T) {
	t.Parallel()
	codes := []inference.ErrorCode{
		inference.CodeUpstreamRejected, inference.CodeUpstreamRateLimited, inference.CodeUpstreamAuth, inference.CodeUpstreamError,
		inference.CodeUpstreamInvalid, inference.CodeUpstreamTooLarge, inference.CodeUpstreamUnavailable, inference.CodeUpstreamTimeout,
		inference.CodeUpstreamCut, inference.CodeDeadlineExceeded, inference.CodeCancelled, inference.CodeWorkerLost, inference.CodeInternal,
		inference.CodeQueueFull, inference.CodeQueueUnavailable, inference.CodeRequestTooLarge,
	}
	yes := func() bool { return rand.IntN(2) == 0 }
	for range 50_000 {
		e := failed(codes[rand.IntN(len(codes))])
		if yes() {
			e.Refusal = []inference.Refusal{inference.RefusalContent, inference.RefusalContext, "other"}[rand.IntN(3)]
		}
		o := outlook{
			err: e, started: yes(), blocked: yes(), wait: time.Duration(rand.IntN(3)) * time.Second, left: time.Duration(rand.IntN(4)-1) * time.Second,
			patience: time.Duration(rand.IntN(3)) * time.Second, next: yes(), peers: yes(), leaving: yes(),
		}
		got := dispose(o)
		if o.started || e.Reason() == 0 {
			require.Equal(t, toAnswer, got, "%+v", o)
		}
		switch got {
		case toHold:
			require.True(t, o.blocked || o.wait < o.left, "%+v", o)
			require.False(t, o.leaving, "%+v", o)
			require.True(t, o.blocked || e.Code == inference.CodeUpstreamRateLimited, "%+v", o)
		case toForward:
			require.True(t, o.next, "%+v", o)
		case toGiveBack:
			require.True(t, o.peers || o.leaving, "%+v", o)
		case toAnswer:
			require.False(t, o.next && !o.started && e.Reason() != 0, "a candidate is left: %+v", o)
		}
	}
}
