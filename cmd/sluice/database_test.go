package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/store"
)

// answer is what a database says to a question.
type answer string

func (a answer) Error() string    { return "answer " + string(a) }
func (a answer) SQLState() string { return string(a) }

func TestRefused(t *testing.T) {
	t.Parallel()
	require.False(t, refused(nil))
	require.False(t, refused(errors.New("connection refused")))
	for state, want := range map[answer]bool{"28P01": true, "28000": true, "3D000": true, "42501": true, "57P03": false, "08006": false, "53300": false, "": false} {
		require.Equal(t, want, refused(fmt.Errorf("read: %w", errors.Join(errors.New("first try"), state))), state)
	}
}

// script is a database that gives one answer after the other to the question about its
// schema.
type script struct {
	store.Store
	answers []func() (bool, error)
}

func (s *script) Pending(context.Context) (bool, error) {
	next := s.answers[0]
	s.answers = s.answers[1:]
	return next()
}

func TestADatabaseThatIsDownIsWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fails := func(err error) func() (bool, error) { return func() (bool, error) { return false, err } }
		down, old := fails(errors.New("down")), func() (bool, error) { return true, nil }
		s := &script{answers: []func() (bool, error){down, down, fails(answer("28P01")), fails(answer("28P01")), down, old, old, old, fails(nil)}}
		db := &database{Store: s, usable: make(chan struct{})}
		var log strings.Builder
		start := time.Now()
		go db.watch(t.Context(), slog.New(slog.NewTextHandler(&log, nil)))
		<-db.usable
		require.Equal(t, 9*databasePoll, time.Since(start))
		require.Equal(t, 1, strings.Count(log.String(), "28P01"), "a cause is told once: %s", log.String())
		require.Equal(t, 1, strings.Count(log.String(), "sluice migrate"), log.String())
		require.Equal(t, 3, strings.Count(log.String(), "msg="), log.String())
	})
}

func TestTheWaitForADatabaseEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		db := &database{Store: &script{}, usable: make(chan struct{})}
		done := make(chan struct{})
		go func() {
			defer close(done)
			db.watch(ctx, slog.New(slog.DiscardHandler))
		}()
		cancel()
		<-done
	})
}
