package sim

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func parse(t *testing.T, raw string, kind inference.Kind) (*drill, error) {
	t.Helper()
	r, err := parseRequest([]byte(`{"messages":[],"sim":` + raw + `}`))
	require.NoError(t, err)
	return parseDrill(r.Sim, kind)
}

func TestDrillIsRefused(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ü", 100)
	for raw, param := range map[string]string{
		`7`:                                           "sim",
		`"status"`:                                    "sim",
		`[]`:                                          "sim",
		`true`:                                        "sim",
		`{},"sim":{}`:                                 "sim",
		`{},"SIM":{}`:                                 "sim",
		`{"Status":500}`:                              "sim.Status",
		`{"state":1}`:                                 "sim.state",
		`{"":1}`:                                      "sim.",
		`{"` + long + `":1}`:                          "sim." + long[:128],
		`{"status":500,"status":500}`:                 "sim.status",
		`{"status":null,"status":500}`:                "sim.status",
		`{"status":399}`:                              "sim.status",
		`{"status":600}`:                              "sim.status",
		`{"status":"500"}`:                            "sim.status",
		`{"status":500.0}`:                            "sim.status",
		`{"status":5e2}`:                              "sim.status",
		`{"status":true}`:                             "sim.status",
		`{"status":99999999999999999999}`:             "sim.status",
		`{"status":429,"retry_after":"soon"}`:         "sim.retry_after",
		`{"status":429,"retry_after":""}`:             "sim.retry_after",
		`{"status":429,"retry_after":-1}`:             "sim.retry_after",
		`{"status":429,"retry_after":"-1s"}`:          "sim.retry_after",
		`{"status":429,"retry_after":"25h"}`:          "sim.retry_after",
		`{"status":429,"retry_after":86401}`:          "sim.retry_after",
		`{"status":429,"retry_after":1e300}`:          "sim.retry_after",
		`{"status":429,"retry_after":1e400}`:          "sim.retry_after",
		`{"status":429,"retry_after":[1]}`:            "sim.retry_after",
		`{"retry_after":1}`:                           "sim.retry_after",
		`{"hang":true,"retry_after":1}`:               "sim.retry_after",
		`{"first_token_delay":"61m"}`:                 "sim.first_token_delay",
		`{"first_token_delay":true}`:                  "sim.first_token_delay",
		`{"tokens_per_second":-1}`:                    "sim.tokens_per_second",
		`{"tokens_per_second":1.1e9}`:                 "sim.tokens_per_second",
		`{"tokens_per_second":"fast"}`:                "sim.tokens_per_second",
		`{"completion_tokens":0}`:                     "sim.completion_tokens",
		`{"completion_tokens":10001}`:                 "sim.completion_tokens",
		`{"cut_after":-1}`:                            "sim.cut_after",
		`{"cut_after":10001}`:                         "sim.cut_after",
		`{"malformed":1}`:                             "sim.malformed",
		`{"malformed":"true"}`:                        "sim.malformed",
		`{"refusal":true}`:                            "sim.refusal",
		`{"refusal":"no"}`:                            "sim.refusal",
		`{"refusal":"content_filter","hang":true}`:    "sim.refusal",
		`{"refusal":"content_refused","cut_after":1}`: "sim.cut_after",
		`{"unreachable":{}}`:                          "sim.unreachable",
		`{"hang":0}`:                                  "sim.hang",
		`{"status":500,"times":0}`:                    "sim.times",
		`{"status":500,"times":1001}`:                 "sim.times",
		`{"times":1}`:                                 "sim.times",
		`{"times":1,"hang":false}`:                    "sim.times",
		`{"times":1,"first_token_delay":1}`:           "sim.times",
		`{"unreachable":true,"status":500}`:           "sim.unreachable",
		`{"hang":true,"status":500}`:                  "sim.hang",
		`{"malformed":true,"hang":true}`:              "sim.malformed",
		`{"cut_after":1,"status":500}`:                "sim.cut_after",
		`{"cut_after":1,"unreachable":true}`:          "sim.cut_after",
		`{"cut_after":1,"hang":true,"status":500}`:    "sim.hang",
	} {
		_, err := parse(t, raw, inference.KindChat)
		e := inference.AsError(err)
		require.Equal(t, inference.CodeInvalidRequest, e.Code, raw)
		require.Equal(t, param, e.Param, raw)
		require.False(t, e.Retryable)
		require.NotEmpty(t, e.Message)
	}
	for _, name := range []string{"completion_tokens", "tokens_per_second"} {
		_, err := parse(t, `{"`+name+`":5}`, inference.KindEmbeddings)
		require.Equal(t, "sim."+name, inference.AsError(err).Param)
	}
}

func TestDrillIsRead(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]fault{
		`{}`: {},
		`{"status":null,"hang":null,"retry_after":null,"tokens_per_second":null,"times":null}`: {},
		`{"malformed":false,"hang":false,"unreachable":false}`:                                 {},
		`{"status":400}`:                                   {kind: faultStatus, status: 400},
		`{"status":599}`:                                   {kind: faultStatus, status: 599},
		`{"status":429,"retry_after":"2s"}`:                {kind: faultStatus, status: 429, retryAfter: 2 * time.Second},
		`{ "retry_after" : 1.5 , "status" : 503 }`:         {kind: faultStatus, status: 503, retryAfter: 1500 * time.Millisecond},
		`{"status":503,"retry_after":86400}`:               {kind: faultStatus, status: 503, retryAfter: maxRetryAfter},
		`{"st\u0061tus":503}`:                              {kind: faultStatus, status: 503},
		`{"unreachable":true,"times":1000}`:                {kind: faultUnreachable},
		`{"hang":true,"status":null}`:                      {kind: faultHang},
		`{"malformed":true}`:                               {kind: faultMalformed},
		`{"refusal":"content_filter","times":1}`:           {kind: faultFiltered},
		`{"refusal":"context_too_long"}`:                   {kind: faultRefusal, refusal: "context_too_long"},
		`{"malformed":true,"cut_after":3}`:                 {kind: faultMalformed, after: 3},
		`{"cut_after":3,"hang":true}`:                      {kind: faultHang, after: 3},
		`{"cut_after":0}`:                                  {kind: faultCut},
		`{"cut_after":10000}`:                              {kind: faultCut, after: 10000},
		`{"first_token_delay":3600,"completion_tokens":1}`: {},
	} {
		d, err := parse(t, raw, inference.KindChat)
		require.NoError(t, err, raw)
		require.Equal(t, want, d.fault(), raw)
	}
	d, err := parse(t, "null", inference.KindChat)
	require.NoError(t, err)
	require.Nil(t, d)
}

func FuzzDrill(f *testing.F) {
	for _, seed := range []string{
		`{"status":429,"retry_after":"2s","times":1}`, `{"cut_after":3,"malformed":true}`, `null`, `{},"sim":{}`,
		`{"hang":true,"unreachable":false}`, `{"first_token_delay":0.5,"tokens_per_second":1e-300,"completion_tokens":5}`,
		`{"a":[{}]}`, `[`, `{"status":null}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		r, err := parseRequest([]byte(`{"messages":[],"sim":` + raw + `}`))
		if err != nil {
			return
		}
		d, err := parseDrill(r.Sim, inference.KindChat)
		if err != nil {
			var e *inference.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, inference.CodeInvalidRequest, e.Code)
			require.True(t, e.Param == "sim" || strings.HasPrefix(e.Param, "sim."), e.Param)
			return
		}
		again, err := parseDrill(r.Sim, inference.KindChat)
		require.NoError(t, err)
		require.Equal(t, d, again)
		if d == nil {
			return
		}
		require.True(t, json.Valid(r.Sim.raw))
		got := d.fault()
		require.True(t, got.after >= 0 && got.after <= MaxCompletionTokens)
		require.True(t, got.retryAfter >= 0 && got.retryAfter <= maxRetryAfter)
		require.Equal(t, got.kind == faultStatus, got.status >= minStatus && got.status <= maxStatus)
		require.True(t, d.delay == nil || *d.delay >= 0 && *d.delay <= maxDelay)
		require.True(t, d.rate == nil || *d.rate >= 0 && *d.rate <= maxRate)
		require.True(t, d.tokens == nil || *d.tokens >= 1 && *d.tokens <= MaxCompletionTokens)
		require.True(t, d.times == nil || *d.times >= 1 && got.kind != faultNone)
		c := course{start: time.Now(), delay: time.Second}
		if d.rate != nil {
			c.rate = *d.rate
		}
		require.False(t, c.due(MaxCompletionTokens).Before(c.due(0)), "a pace, however slow, leads forward")
	})
}
