package queue

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

// asked is a claim that waits for its judgement.
type asked struct {
	claim  Claim
	answer chan<- error
}

// hearClaims hears the lane's claims; each comes through the channel and is judged
// fullJudgement, or answered with an error.
func hearClaims(t *testing.T, c *Conn, lane inference.Lane) (<-chan asked, *Hearing) {
	t.Helper()
	ch := make(chan asked, 1000)
	h, err := c.HearClaims(lane, func(ctx context.Context, claim Claim) (Judgement, error) {
		answer := make(chan error, 1)
		ch <- asked{claim, answer}
		select {
		case err := <-answer:
			return fullJudgement(), err
		case <-ctx.Done():
			return Judgement{}, ctx.Err()
		}
	})
	require.NoError(t, err)
	t.Cleanup(h.Close)
	flush(t, c)
	return ch, h
}

type judged struct {
	Judgement
	err error
}

// claim asks about a job of the batch lane; the answer comes through the channel.
func claim(t *testing.T, c *Conn, cl Claim) <-chan judged {
	t.Helper()
	a := &Answerer{conn: c, worker: "worker01"}
	ch := make(chan judged, 1)
	go func() {
		j, err := a.ClaimStored(t.Context(), inference.LaneBatch, cl)
		ch <- judged{j, err}
	}()
	return ch
}

func newClaim() Claim {
	return Claim{JobID: NewJobID(testIngress, time.Now()), Run: Run{3, 4}, Worker: "worker01", Place: fullPassed().Next}
}

func TestAClaimOnAStoredJobIsHeardByOneIngress(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	c, second := connectTo(t, srv), connectTo(t, srv)
	want := newClaim()
	require.ErrorIs(t, receive(t, claim(t, c, want)).err, ErrNoIngress)
	hearClaims(t, c, inference.LaneBackground)
	require.ErrorIs(t, receive(t, claim(t, c, want)).err, ErrNoIngress, "another lane")

	one, h := hearClaims(t, c, inference.LaneBatch)
	two, other := hearClaims(t, second, inference.LaneBatch)
	for range 20 {
		answer := claim(t, c, want)
		var got asked
		select {
		case got = <-one:
		case got = <-two:
		case <-time.After(soon):
			require.FailNow(t, "nobody heard it")
		}
		require.Equal(t, want, got.claim)
		got.answer <- nil
		require.Equal(t, judged{fullJudgement(), nil}, receive(t, answer))
	}
	require.Empty(t, one, "one of them")
	require.Empty(t, two, "one of them")
	h.Close()
	flush(t, c)
	answer := claim(t, c, want)
	receive(t, two).answer <- nil
	require.NoError(t, receive(t, answer).err, "the other one is left")
	other.Close()
	flush(t, second)
	require.ErrorIs(t, receive(t, claim(t, c, want)).err, ErrNoIngress)
}

func TestAClaimThatCannotBeJudgedHasNoAnswer(t *testing.T) {
	t.Parallel()
	c := connectTo(t, startServer(t))
	claims, _ := hearClaims(t, c, inference.LaneBatch)
	answer := claim(t, c, newClaim())
	receive(t, claims).answer <- errors.New("database is down")
	err := receive(t, answer).err
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrNoIngress)
}

func TestWhatIsNoClaimIsDropped(t *testing.T) {
	t.Parallel()
	c := connectTo(t, startServer(t))
	claims, _ := hearClaims(t, c, inference.LaneBatch)
	good := newClaim()
	require.NoError(t, c.nc.Publish(storedClaimSubject(inference.LaneBatch, good.JobID), []byte("{")))
	require.NoError(t, c.nc.Publish(storedClaimSubject(inference.LaneBatch, "odd"), good.encode()))
	answer := claim(t, c, good)
	got := receive(t, claims)
	require.Equal(t, good, got.claim)
	got.answer <- nil
	require.NoError(t, receive(t, answer).err)
}

func TestClaimsAreJudgedManyAtOnceButNotAll(t *testing.T) {
	t.Parallel()
	c := connectTo(t, startServer(t))
	claims, _ := hearClaims(t, c, inference.LaneBatch)
	var answers []<-chan judged
	for range claimsAtOnce + 8 {
		answers = append(answers, claim(t, c, newClaim()))
	}
	var open []asked
	for range claimsAtOnce {
		open = append(open, receive(t, claims))
	}
	flush(t, c)
	require.Empty(t, claims, "no more at once")
	for range 8 {
		open[0].answer <- nil
		open = append(open[1:], receive(t, claims))
	}
	for _, o := range open {
		o.answer <- nil
	}
	for _, a := range answers {
		require.NoError(t, receive(t, a).err)
	}
}

func TestClosingWaitsForTheJudgementsAtWork(t *testing.T) {
	t.Parallel()
	c := connectTo(t, startServer(t))
	claims, h := hearClaims(t, c, inference.LaneBatch)
	answer := claim(t, c, newClaim())
	open := receive(t, claims)
	closed := make(chan struct{})
	var closing sync.WaitGroup
	closing.Go(func() {
		h.Close()
		close(closed)
	})
	defer closing.Wait()
	eventually(t, func() bool { h.hearing.Lock(); defer h.hearing.Unlock(); return h.closed }, "it is closing")
	select {
	case <-closed:
		require.FailNow(t, "a judgement is at work")
	case <-time.After(50 * time.Millisecond):
	}
	open.answer <- nil
	require.NoError(t, receive(t, answer).err, "it is sent")
	receive(t, closed)
	h.heard(newRaw(storedClaimSubject(inference.LaneBatch, NewJobID(testIngress, time.Now())), (&Claim{}).encode()))
	h.judging.Wait()
	require.Empty(t, claims, "nothing is taken up any more")
}
