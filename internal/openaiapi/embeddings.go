package openaiapi

import (
	"errors"
	"strconv"
)

// MaxInputs bounds the texts of one embeddings request, as OpenAI's API reference
// does.
const MaxInputs = 2048

// EmbeddingsRequest is what Sluice itself needs of an embeddings request.
type EmbeddingsRequest struct {
	Model  string
	Inputs int // texts to embed
}

// ParseEmbeddings checks an embeddings request, with the same care as ParseChat. The
// input is a string, an array of strings, an array of tokens, or an array of those.
func ParseEmbeddings(body []byte) (EmbeddingsRequest, error) {
	if err := checkBody(body); err != nil {
		return EmbeddingsRequest{}, err
	}
	root := rootOf(body)
	if !root.isObject() {
		return EmbeddingsRequest{}, invalid("", "the request body must be a JSON object")
	}
	var f embeddingsFields
	if err := collect(root, f.slot); err != nil {
		return EmbeddingsRequest{}, err
	}
	model, err := parseModel(f.model)
	if err != nil {
		return EmbeddingsRequest{}, err
	}
	inputs, err := countInputs(f.input)
	if err != nil {
		return EmbeddingsRequest{}, err
	}
	if !f.format.absent() && !f.format.is("float") && !f.format.is("base64") {
		return EmbeddingsRequest{}, invalid("encoding_format", "encoding_format must be float or base64")
	}
	if n, ok := integer(f.dimensions); !f.dimensions.absent() && (!ok || n < 1) {
		return EmbeddingsRequest{}, invalid("dimensions", "dimensions must be a positive integer")
	}
	return EmbeddingsRequest{Model: model, Inputs: inputs}, nil
}

// embeddingsFields holds the members of the request that are looked at.
type embeddingsFields struct{ model, input, format, dimensions value }

func (f *embeddingsFields) slot(name []byte) (string, *value) {
	switch string(name) {
	case "model":
		return "model", &f.model
	case "input":
		return "input", &f.input
	case "encoding_format":
		return "encoding_format", &f.format
	case "dimensions":
		return "dimensions", &f.dimensions
	}
	return "", nil
}

// The forms of an input that is an array.
const (
	ofNothing = iota
	ofTexts
	ofTokens
	ofTokenLists
)

// countInputs checks the input and counts the texts in it.
func countInputs(v value) (int, error) {
	switch {
	case v.absent():
		return 0, invalid("input", "input is missing")
	case v.isString():
		if v.is("") {
			return 0, invalid("input", "input must not be empty")
		}
		return 1, nil
	case !v.isArray():
		return 0, invalid("input", "input must be a string or an array")
	}
	form, n := ofNothing, 0
	it := walk(v)
	for e, ok := it.element(); ok; e, ok = it.element() {
		own := formOf(e)
		if own == ofNothing || form != ofNothing && own != form {
			at := "input[" + strconv.Itoa(n) + "]"
			return 0, invalid(at, "%s must be a text, a token or an array of tokens, like the others", at)
		}
		form = own
		n++
	}
	switch {
	case n == 0:
		return 0, invalid("input", "input must not be empty")
	case form == ofTokens:
		return 1, nil
	case n > MaxInputs:
		return 0, invalid("input", "input must hold at most %d texts", MaxInputs)
	}
	return n, nil
}

func formOf(e value) int {
	switch {
	case e.isString() && !e.is(""):
		return ofTexts
	case e.isNumber():
		if n, ok := integer(e); ok && n >= 0 {
			return ofTokens
		}
	case e.isArray() && !e.empty():
		it := walk(e)
		for t, ok := it.element(); ok; t, ok = it.element() {
			if n, whole := integer(t); !whole || n < 0 {
				return ofNothing
			}
		}
		return ofTokenLists
	}
	return ofNothing
}

// ErrNotEmbeddings says that an answer is no list of embeddings.
var ErrNotEmbeddings = errors.New("not a list of embeddings")

// ParseEmbeddingList checks the answer to an embeddings request and reads what is
// needed of it. The error is ErrNotJSON or ErrNotEmbeddings.
func ParseEmbeddingList(body []byte) (Completion, error) {
	if check(body) != nil {
		return Completion{}, ErrNotJSON
	}
	root := rootOf(body)
	if !root.isObject() {
		return Completion{}, ErrNotEmbeddings
	}
	if !root.field("data").isArray() {
		if root.field("error").absent() {
			return Completion{}, ErrNotEmbeddings
		}
		return Completion{Failed: true}, nil
	}
	usage, model := UsageOf(body)
	return Completion{Model: model, Usage: usage}, nil
}
