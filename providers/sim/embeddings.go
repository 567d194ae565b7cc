package sim

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"strconv"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
)

const (
	defaultDimensions = 8
	maxDimensions     = 4096

	// maxComponents bounds an answer's size, which a short request could else make
	// some 100 MB long.
	maxComponents = 1 << 20
)

// embeddingsRequest is what the simulation reads of an embeddings request.
type embeddingsRequest struct {
	Model      string          `json:"model"`
	Input      json.RawMessage `json:"input"`
	Encoding   string          `json:"encoding_format"`
	Dimensions *int            `json:"dimensions"`
	Sim        field           `json:"sim"`

	texts []embedded
}

// embedded is one text of the input.
type embedded struct {
	seed   uint64
	tokens int
}

// embed answers an embeddings request.
func (p *Provider) embed(ctx context.Context, call providers.Call) (*providers.Response, error) {
	turn := p.calls.Add(1)
	req, err := p.parseEmbeddings(call)
	if err != nil {
		return nil, err
	}
	d, err := parseDrill(req.Sim, call.Kind)
	if err != nil {
		return nil, err
	}
	c := p.newCourse(call, d)
	c.fault.after = 0 // there are no tokens to wait for
	if err := p.open(ctx, call, c, turn); err != nil {
		return nil, err
	}
	usage := inference.Usage{Known: true}
	for _, text := range req.texts {
		usage.PromptTokens += int64(text.tokens)
	}
	return &providers.Response{Body: req.answer(usage), Model: req.Model, Usage: usage}, nil
}

func (p *Provider) parseEmbeddings(call providers.Call) (*embeddingsRequest, error) {
	if _, err := openaiapi.ParseEmbeddings(call.Body); err != nil {
		e := inference.AsError(err)
		return nil, p.reject(e.Message, e.Param)
	}
	var r embeddingsRequest
	if json.Unmarshal(call.Body, &r) != nil {
		return nil, p.reject("the request body is not an embeddings request", "")
	}
	if call.Model != "" {
		r.Model = call.Model
	}
	if r.Dimensions == nil {
		r.Dimensions = new(defaultDimensions)
	}
	if *r.Dimensions > maxDimensions {
		return nil, p.reject(fmt.Sprintf("dimensions must be at most %d", maxDimensions), "dimensions")
	}
	r.readInput()
	if len(r.texts)*(*r.Dimensions) > maxComponents {
		return nil, p.reject(fmt.Sprintf("dimensions times the number of texts must be at most %d", maxComponents), "dimensions")
	}
	return &r, nil
}

// readInput reads the input, whose form has been checked: a string, strings, tokens
// or lists of tokens.
func (r *embeddingsRequest) readInput() {
	var text string
	var texts []string
	var tokens []int64
	var lists [][]int64
	switch {
	case json.Unmarshal(r.Input, &text) == nil:
		texts = []string{text}
	case json.Unmarshal(r.Input, &texts) == nil:
	case json.Unmarshal(r.Input, &tokens) == nil:
		texts, lists = nil, [][]int64{tokens}
	case json.Unmarshal(r.Input, &lists) == nil:
		texts = nil
	}
	for _, text := range texts {
		r.texts = append(r.texts, embedded{seed: r.seedOf("text", []byte(text)), tokens: countTokens(text)})
	}
	for _, list := range lists {
		var packed []byte
		for _, token := range list {
			packed = binary.AppendVarint(packed, token)
		}
		r.texts = append(r.texts, embedded{seed: r.seedOf("tokens", packed), tokens: len(list)})
	}
}

// seedOf condenses what a vector shall depend on. A text of tokens is another than
// any text of words: the simulation does not know what the tokens say.
func (r *embeddingsRequest) seedOf(form string, content []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(r.Model)) // a hash never fails
	_, _ = h.Write([]byte("\x00" + form + "\x00"))
	_, _ = h.Write(content)
	return scramble(h.Sum64())
}

// vector fills v with a direction of length 1. Fewer dimensions give the same
// direction, shortened and brought to length 1 again, as OpenAI's models do.
func vector(v []float64, seed uint64) {
	random := rand.NewPCG(seed, 0)
	sum := 0.0
	for i := range v {
		// An odd number is never zero, and so neither is the vector.
		v[i] = float64(int64(random.Uint64()|1)) / (1 << 63)
		sum += v[i] * v[i]
	}
	length := math.Sqrt(sum)
	for i := range v {
		v[i] /= length
	}
}

// answer returns the list of embeddings in OpenAI's form.
func (r *embeddingsRequest) answer(usage inference.Usage) []byte {
	v := make([]float64, *r.Dimensions)
	b := []byte(`{"object":"list","data":[`)
	for i, text := range r.texts {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"object":"embedding","index":`...)
		b = strconv.AppendInt(b, int64(i), 10)
		b = append(b, `,"embedding":`...)
		vector(v, text.seed)
		if r.Encoding == "base64" {
			b = appendBase64(b, v)
		} else {
			b = appendFloats(b, v)
		}
		b = append(b, '}')
	}
	b = append(b, `],"model":`...)
	b = openaiapi.AppendString(b, r.Model)
	b = append(b, `,"usage":{"prompt_tokens":`...)
	b = strconv.AppendInt(b, usage.PromptTokens, 10)
	b = append(b, `,"total_tokens":`...)
	b = strconv.AppendInt(b, usage.PromptTokens, 10)
	return append(b, "}}"...)
}

func appendFloats(b []byte, v []float64) []byte {
	b = append(b, '[')
	for i, x := range v {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendFloat(b, float64(float32(x)), 'g', -1, 32)
	}
	return append(b, ']')
}

// appendBase64 packs the components as little-endian float32.
func appendBase64(b []byte, v []float64) []byte {
	packed := make([]byte, 0, 4*len(v))
	for _, x := range v {
		packed = binary.LittleEndian.AppendUint32(packed, math.Float32bits(float32(x)))
	}
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, packed)
	return append(b, '"')
}
