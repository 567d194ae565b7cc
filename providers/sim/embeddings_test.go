package sim_test

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/sim"
)

func embeddings(fields string) providers.Call {
	return providers.Call{Kind: inference.KindEmbeddings, Body: []byte(`{"model":"sim",` + fields + `}`)}
}

// embed returns the vectors of an answer, whichever their encoding.
func embed(t *testing.T, p *sim.Provider, call providers.Call) ([][]float32, inference.Usage) {
	t.Helper()
	resp, err := p.Generate(t.Context(), call)
	require.NoError(t, err)
	read, err := openaiapi.ParseEmbeddingList(resp.Body)
	require.NoError(t, err)
	require.Equal(t, resp.Model, read.Model)
	require.Equal(t, resp.Usage, read.Usage)
	var list struct {
		Object string `json:"object"`
		Data   []struct {
			Object    string          `json:"object"`
			Index     int             `json:"index"`
			Embedding json.RawMessage `json:"embedding"`
		} `json:"data"`
		Usage map[string]int64 `json:"usage"`
	}
	require.NoError(t, json.Unmarshal(resp.Body, &list))
	require.Equal(t, "list", list.Object)
	require.Equal(t, map[string]int64{"prompt_tokens": resp.Usage.PromptTokens, "total_tokens": resp.Usage.PromptTokens}, list.Usage)
	var vectors [][]float32
	for i, e := range list.Data {
		require.Equal(t, i, e.Index)
		require.Equal(t, "embedding", e.Object)
		vectors = append(vectors, components(t, e.Embedding))
	}
	return vectors, resp.Usage
}

func components(t *testing.T, raw []byte) []float32 {
	t.Helper()
	var v []float32
	if raw[0] == '"' {
		var packed []byte
		require.NoError(t, json.Unmarshal(raw, &packed)) // base64, as encoding/json reads bytes
		require.Equal(t, base64.StdEncoding.EncodeToString(packed), string(raw[1:len(raw)-1]))
		v = make([]float32, len(packed)/4)
		_, err := binary.Decode(packed, binary.LittleEndian, v)
		require.NoError(t, err)
	} else {
		require.NoError(t, json.Unmarshal(raw, &v))
	}
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	require.InDelta(t, 1, math.Sqrt(sum), 1e-6)
	return v
}

func TestEmbeddings(t *testing.T) {
	t.Parallel()
	p := newSim(t, sim.Options{})
	one, usage := embed(t, p, embeddings(`"input":"how are you"`))
	require.Len(t, one, 1)
	require.Len(t, one[0], 8)
	require.Equal(t, inference.Usage{PromptTokens: 3, Known: true}, usage)

	several, usage := embed(t, p, embeddings(`"input":["how are you","fine"],"encoding_format":"base64","user":"u","sim":{}`))
	require.Len(t, several, 2)
	require.Equal(t, one[0], several[0], "the same text, however it is asked for")
	require.NotEqual(t, several[0], several[1])
	require.EqualValues(t, 4, usage.PromptTokens)

	tokens, usage := embed(t, p, embeddings(`"input":[1,2,3]`))
	lists, sum := embed(t, p, embeddings(`"input":[[1,2,3],[3,2,1]],"encoding_format":"float"`))
	require.Len(t, tokens, 1)
	require.Len(t, lists, 2)
	require.Equal(t, tokens[0], lists[0])
	require.NotEqual(t, lists[0], lists[1])
	require.EqualValues(t, 3, usage.PromptTokens)
	require.EqualValues(t, 6, sum.PromptTokens)

	again, _ := embed(t, newSim(t, sim.Options{}), embeddings(`"input":"how are you"`))
	require.Equal(t, one, again)
	call := embeddings(`"input":"how are you"`)
	call.Model = "other"
	other, _ := embed(t, p, call)
	require.NotEqual(t, one, other)
}

func TestDimensions(t *testing.T) {
	t.Parallel()
	p := newSim(t, sim.Options{})
	whole, _ := embed(t, p, embeddings(`"input":"x","dimensions":4096`))
	require.Len(t, whole[0], 4096)
	for _, n := range []int{1, 3, 8} {
		short, _ := embed(t, p, embeddings(`"input":"x","dimensions":`+strconv.Itoa(n)))
		require.Len(t, short[0], n)
		for i := range short[0] {
			require.InDelta(t, whole[0][i]/whole[0][0], short[0][i]/short[0][0], 1e-4, "the same direction, shortened")
		}
	}
	plain, _ := embed(t, p, embeddings(`"input":"x","dimensions":null,"encoding_format":null`))
	require.Len(t, plain[0], 8)
}

func TestEmbeddingsAreRejected(t *testing.T) {
	t.Parallel()
	p := newSim(t, sim.Options{})
	many := `"input":[` + strings.Repeat(`"x",`, 256) + `"x"]`
	for fields, param := range map[string]string{
		`"input":""`:                              "input",
		`"input":7`:                               "input",
		`"input":["x",7]`:                         "input[1]",
		`"input":"x","dimensions":0`:              "dimensions",
		`"input":"x","dimensions":4097`:           "dimensions",
		`"input":"x","dimensions":1.0`:            "dimensions",
		`"input":"x","dimensions":99999999999999`: "dimensions",
		many + `,"dimensions":4096`:               "dimensions",
		`"input":"x","encoding_format":"hex"`:     "encoding_format",
		`"x":1`:                                   "input",
	} {
		_, err := p.Generate(t.Context(), embeddings(fields))
		e := inference.AsError(err)
		require.Equal(t, inference.CodeUpstreamRejected, e.Code, fields)
		require.Equal(t, 400, e.Status)
		require.Equal(t, param, e.Param, fields)
		require.True(t, json.Valid(e.Body))
	}
	_, err := p.StreamGenerate(t.Context(), embeddings(`"input":"x"`), func([][]byte) error { return nil })
	require.Equal(t, inference.CodeInvalidRequest, inference.AsError(err).Code)
}

func TestEmbeddingsMisbehave(t *testing.T) {
	t.Parallel()
	for fields, code := range map[string]inference.ErrorCode{
		`{"status":429,"retry_after":3}`:    inference.CodeUpstreamRateLimited,
		`{"unreachable":true}`:              inference.CodeUpstreamUnavailable,
		`{"malformed":true}`:                inference.CodeUpstreamInvalid,
		`{"malformed":true,"cut_after":50}`: inference.CodeUpstreamInvalid,
		`{"cut_after":50}`:                  inference.CodeUpstreamCut,
		`{"hang":true}`:                     inference.CodeDeadlineExceeded,
		`{"first_token_delay":60}`:          inference.CodeDeadlineExceeded,
	} {
		t.Run(fields, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				begun := time.Now()
				_, err := newSim(t, sim.Options{FirstTokenDelay: time.Second}).Generate(ctx, embeddings(`"input":"x","sim":`+fields))
				require.Equal(t, code, inference.AsError(err).Code)
				if code == inference.CodeDeadlineExceeded {
					require.Equal(t, 10*time.Second, time.Since(begun))
				} else {
					require.Equal(t, time.Second, time.Since(begun))
				}
			})
		})
	}
	_, err := newSim(t, sim.Options{FailureRate: 1}).Generate(t.Context(), embeddings(`"input":"x"`))
	require.Equal(t, 500, inference.AsError(err).Status)
}
