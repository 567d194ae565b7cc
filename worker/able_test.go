package worker

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/providers"
)

// A job that waited for the provider's first worker may need what nobody knew that its
// model lacks.
func TestAModelIsNotAskedForWhatItCannotDo(t *testing.T) {
	t.Parallel()
	const picture = `{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,"}}]}]}`
	for name, c := range map[string]struct {
		model, body string
		stream      bool
		refused     string
	}{
		"it sees":                {"m", picture, false, ""},
		"it is blind":            {"blind", picture, false, "images"},
		"nothing to see":         {"blind", `{"model":"m","messages":[{"role":"user","content":"x"}]}`, false, ""},
		"no tools":               {"blind", `{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function"}]}`, false, "tools"},
		"not streamed":           {"blind", `{"model":"m","messages":[{"role":"user","content":"x"}]}`, true, "streaming"},
		"odd, the provider's":    {"blind", `{}`, false, ""},
		"a schema to be kept to": {"blind", `{"model":"m","messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema"}}`, false, "structured output"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
				return answer(`{}`)
			})
			w, _ := r.start("worker01")
			require.Eventually(t, func() bool { return w.pools[0].traits.Load() != nil }, soon, time.Millisecond)
			j := newJob(c.stream)
			j.Body, j.Candidates = []byte(c.body), []inference.Candidate{{Provider: testName, Model: c.model}}
			r.publish(j)
			e := next(t, r.ends)
			r.settle(e)
			if c.refused == "" {
				require.Nil(t, e.Err)
				return
			}
			require.Equal(t, inference.CodeInvalidRequest, e.Err.Code)
			require.Contains(t, e.Err.Message, c.refused)
			require.Equal(t, inference.ReasonUnavailable, e.Err.Reason(), "another candidate may be able to")
			require.Zero(t, r.script.count())
			require.Zero(t, e.Attempts)
		})
	}
}

// What the provider's policy does not allow is an answer, unless there is a candidate for
// just that.
func TestARefusalIsAnErrorWhereAnotherMayBeAsked(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	r.announced(elsewhere("b"))
	w, _ := r.start("worker01")
	hears(t, w, "b")
	for _, on := range []inference.Reasons{0, inference.ReasonContextTooLong, inference.ReasonContentRefused} {
		j := newJob(false)
		j.Candidates = at(testName, "b")
		j.Candidates[1].On = on
		r.publish(j)
		r.settle(next(t, r.ends))
	}
	require.Equal(t, []bool{false, false, true}, []bool{r.script.calls[0].RefusalIsError, r.script.calls[1].RefusalIsError, r.script.calls[2].RefusalIsError})
}
