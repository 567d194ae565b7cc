package queue

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

// An ingress that is slow is there: only where nobody listens is nobody.
func TestAClaimThatIsNotJudgedInTimeIsHeardAllTheSame(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a, err := c.NewAnswerer("worker01", nil, newEar())
	require.NoError(t, err)
	defer a.Close()
	id := NewJobID(testIngress, time.Now())
	_, err = a.Claim(t.Context(), Claim{JobID: id, Run: Run{0, 2}, Worker: "worker01"})
	require.ErrorIs(t, err, ErrNoIngress)
	require.True(t, a.IngressGone(t.Context(), id))

	slow, err := c.subscribe(replySubject(whatClaim, id), func(*nats.Msg) {})
	require.NoError(t, err)
	defer func() { require.NoError(t, slow.Unsubscribe()) }()
	flush(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = a.Claim(ctx, Claim{JobID: id, Run: Run{0, 2}, Worker: "worker01"})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrNoIngress)
	require.False(t, a.IngressGone(ctx, id))
}

// The same as an ingress asks that knows no job of the other one.
func TestAnIngressThatNobodyHearsIsGone(t *testing.T) {
	t.Parallel()
	c := setup(t)
	gone := func() bool {
		t.Helper()
		gone, err := c.IngressGone(t.Context(), testIngress)
		require.NoError(t, err)
		return gone
	}
	require.True(t, gone())
	d, err := c.NewDispatcher(testIngress, newEar())
	require.NoError(t, err)
	flush(t, c)
	require.False(t, gone())
	d.Close()
	flush(t, c)
	require.True(t, gone())

	slow, err := c.subscribe("rep."+testIngress+".>", func(*nats.Msg) {})
	require.NoError(t, err)
	flush(t, c)
	require.False(t, gone(), "it does not answer in time")
	require.NoError(t, slow.Unsubscribe())

	c.Close()
	_, err = c.IngressGone(t.Context(), testIngress)
	require.ErrorIs(t, err, errNotConnected, "the server did not tell")
}
