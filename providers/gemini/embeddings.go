package gemini

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strconv"

	"github.com/tidwall/gjson"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/internal/chat"
	"sluice/providers/internal/upstream"
)

// batchSize is how many texts batchEmbedContents takes at once.
const batchSize = 100

const (
	maxDimensions = 1 << 16
	bytesPerToken = 4 // the usual rule of thumb for an estimate
)

var (
	errNotEmbeddings = errors.New("not as many embeddings as texts")
	errNotVector     = errors.New("an embedding that is no list of numbers")
)

// embedding is one embeddings request under way.
type embedding struct {
	model      string
	texts      []string
	dimensions int64 // 0: the model's own
	base64     bool

	out    []byte
	tokens int64
	told   bool // the upstream counted the tokens of all texts
	done   int  // texts with their embedding
}

// embed answers an embeddings request. The upstream does not say as a rule how many
// tokens it read, so usage is estimated from the length of the texts and marked. Vectors
// are passed on as they are; those of fewer dimensions than the model's own need not be
// of length 1.
func (p *Provider) embed(ctx context.Context, call providers.Call) (*providers.Response, error) {
	e, err := p.embedding(call)
	if err != nil {
		return nil, err
	}
	for batch := range slices.Chunk(e.texts, batchSize) {
		if err := p.embedBatch(ctx, call, e, batch); err != nil {
			return nil, err
		}
	}
	usage := inference.Usage{PromptTokens: e.tokens, Known: true}
	if !e.told {
		usage.PromptTokens, usage.Estimated = estimateTokens(e.texts), true
	}
	return &providers.Response{Body: e.finish(usage), Model: e.model, Usage: usage}, nil
}

func (p *Provider) embedBatch(ctx context.Context, call providers.Call, e *embedding, batch []string) error {
	resp, err := p.client.Do(ctx, p.request(call, e.model, methodEmbed, e.body(batch)))
	if err != nil {
		return err
	}
	defer resp.Close()
	body, err := resp.ReadAll()
	if err != nil {
		return err
	}
	return e.take(resp, body, len(batch))
}

// embedding reads a request.
func (p *Provider) embedding(call providers.Call) (*embedding, error) {
	base, err := openaiapi.ParseEmbeddings(call.Body)
	if err != nil {
		return nil, err
	}
	e := &embedding{model: p.modelName(cmp.Or(call.Model, base.Model)), told: true}
	e.out = append(e.out, `{"object":"list","data":[`...)
	req := &chat.Request{}
	var input gjson.Result
	gjson.ParseBytes(call.Body).ForEach(func(name, v gjson.Result) bool {
		if !isThere(v) || len(req.Fields) == chat.MaxFields {
			return true
		}
		req.Fields = append(req.Fields, name.Str)
		switch name.Str {
		case "input":
			input = v
		case "dimensions":
			e.dimensions = v.Int()
		case "encoding_format":
			e.base64 = v.Str == "base64"
		}
		return true
	})
	unsupported := chat.NewUnsupported(req, p.client.Name(), p.opts.OnUnsupported)
	if err := unsupported.Check("model", "input", "dimensions", "encoding_format", "user"); err != nil {
		return nil, err
	}
	if e.texts = textsOf(input); len(e.texts) == 0 {
		return nil, invalid("input", "must be text: "+p.client.Name()+" does not take tokens")
	}
	if e.dimensions > maxDimensions {
		return nil, invalid("dimensions", "must be at most "+strconv.Itoa(maxDimensions))
	}
	tellDropped(call, unsupported)
	return e, nil
}

// textsOf returns the texts of an input, nothing if it is made of tokens.
func textsOf(input gjson.Result) []string {
	if input.Type == gjson.String {
		return []string{input.Str}
	}
	var all []string
	input.ForEach(func(_, v gjson.Result) bool {
		if v.Type == gjson.String {
			all = append(all, v.Str)
		}
		return v.Type == gjson.String
	})
	return all
}

// body writes a BatchEmbedContentsRequest.
func (e *embedding) body(batch []string) []byte {
	collection, name := resource(e.model)
	var w writer
	w.out = append(w.out, `{"requests":[`...)
	for _, s := range batch {
		w.open('{')
		w.text("model", collection+"/"+name)
		w.key("content")
		w.out = append(w.out, `{"parts":[{`...)
		w.text("text", s)
		w.out = append(w.out, "}]}"...)
		if e.dimensions > 0 {
			w.integer("outputDimensionality", e.dimensions)
		}
		w.closes('}')
	}
	w.out = append(w.out, "]}"...)
	return w.out
}

// take reads a BatchEmbedContentsResponse for so many texts.
func (e *embedding) take(resp *upstream.Response, body []byte, texts int) error {
	r, err := readReply(body)
	if err != nil {
		return resp.Invalid(err)
	}
	if r.failed {
		return resp.Complained(resp.Explain(body))
	}
	before := e.done
	r.root.Get("embeddings").ForEach(func(_, v gjson.Result) bool {
		err = e.vector(v.Get("values"))
		return err == nil && e.done-before <= texts
	})
	if err == nil && e.done-before != texts {
		err = errNotEmbeddings
	}
	if err != nil {
		return resp.Invalid(err)
	}
	e.told = e.told && r.usage.Known
	e.tokens += r.usage.PromptTokens
	return nil
}

// vector writes one embedding: the numbers as they came, or as little-endian 32-bit
// floats in base64.
func (e *embedding) vector(values gjson.Result) error {
	if !values.IsArray() {
		return errNotVector
	}
	w := writer{out: e.out}
	w.open('{')
	w.text("object", "embedding")
	w.integer("index", int64(e.done))
	w.key("embedding")
	var packed []byte
	if !e.base64 {
		w.open('[')
	}
	n, good := 0, true
	values.ForEach(func(_, v gjson.Result) bool {
		n++
		if good = v.Type == gjson.Number && n <= maxDimensions; !good {
			return false
		}
		if e.base64 {
			packed = binary.LittleEndian.AppendUint32(packed, math.Float32bits(float32(v.Num)))
		} else {
			w.separate()
			w.out = append(w.out, v.Raw...)
		}
		return true
	})
	if !good || n == 0 {
		return errNotVector
	}
	if e.base64 {
		w.out = append(w.out, '"')
		w.out = base64.StdEncoding.AppendEncode(w.out, packed)
		w.out = append(w.out, '"')
	} else {
		w.closes(']')
	}
	w.closes('}')
	e.out = w.out
	e.done++
	return nil
}

func (e *embedding) finish(usage inference.Usage) []byte {
	w := writer{out: append(e.out, ']')}
	w.text("model", e.model)
	w.key("usage")
	w.open('{')
	w.integer("prompt_tokens", usage.PromptTokens)
	w.integer("total_tokens", usage.PromptTokens)
	w.out = append(w.out, "}}"...)
	return w.out
}

func estimateTokens(texts []string) int64 {
	total := int64(0)
	for _, s := range texts {
		total += int64(len(s)+bytesPerToken-1) / bytesPerToken
	}
	return total
}
