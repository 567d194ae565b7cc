package inference

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestErrors(t *testing.T) {
	t.Parallel()
	e := Errorf(CodeQueueFull, "%d are waiting", 3)
	require.Equal(t, "queue_full", e.Error(), "a message may quote the prompt")
	require.NoError(t, e.Unwrap())
	cause := errors.New("cause")
	e.Err = cause
	e.Status = 503
	require.Equal(t, "queue_full (status 503): cause", e.Error())
	require.ErrorIs(t, e, cause)
	require.Same(t, e, AsError(fmt.Errorf("publish: %w", e)))

	other := AsError(fmt.Errorf("secret detail: %w", cause))
	require.Equal(t, CodeInternal, other.Code)
	require.NotContains(t, other.Message, "secret", "a client learns nothing of an unknown error")
	require.ErrorIs(t, other, cause)
}

func TestCandidate(t *testing.T) {
	t.Parallel()
	j := &Job{}
	require.Equal(t, Candidate{}, j.Candidate())
	j.Candidates = []Candidate{{Provider: "a"}, {Provider: "b"}}
	require.Equal(t, "a", j.Candidate().Provider)
}
