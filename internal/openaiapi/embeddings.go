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
	Features

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
	if err := collect(root, embeddingsMember, f[:], nil); err != nil {
		return EmbeddingsRequest{}, err
	}
	features, err := parseFeatures(f[:commonMembers])
	if err != nil {
		return EmbeddingsRequest{}, err
	}
	r := EmbeddingsRequest{Features: features}
	if r.Inputs, r.PromptTokens, err = countInputs(f[inInput]); err != nil {
		return EmbeddingsRequest{}, err
	}
	if format := f[inFormat]; !format.absent() && !format.is("float") && !format.is("base64") {
		return EmbeddingsRequest{}, invalid("encoding_format", "encoding_format must be float or base64")
	}
	if n, ok := integer(f[inDimensions]); !f[inDimensions].absent() && (!ok || n < 1) {
		return EmbeddingsRequest{}, invalid("dimensions", "dimensions must be a positive integer")
	}
	return r, nil
}

// The members of an embeddings request that are looked at, after the common ones.
const (
	inInput = iota + commonMembers
	inFormat
	inDimensions
	embeddingsMembers
)

type embeddingsFields [embeddingsMembers]value

func embeddingsMember(name []byte) (string, int) {
	switch string(name) {
	case "input":
		return "input", inInput
	case "encoding_format":
		return "encoding_format", inFormat
	case "dimensions":
		return "dimensions", inDimensions
	}
	return commonMember(name)
}

// The forms of an input that is an array.
const (
	ofNothing = iota
	ofTexts
	ofTokens
	ofTokenLists
)

// countInputs checks the input, counts the texts in it and estimates their tokens.
func countInputs(v value) (n, tokens int, err error) {
	var said prompt
	switch {
	case v.absent():
		return 0, 0, invalid("input", "input is missing")
	case v.isString():
		if v.is("") {
			return 0, 0, invalid("input", "input must not be empty")
		}
		said.text(v)
		return 1, said.tokens(), nil
	case !v.isArray():
		return 0, 0, invalid("input", "input must be a string or an array")
	}
	form := ofNothing
	it := walk(v)
	for e, ok := it.element(); ok; e, ok = it.element() {
		own, given := formOf(e)
		if own == ofNothing || form != ofNothing && own != form {
			at := "input[" + strconv.Itoa(n) + "]"
			return 0, 0, invalid(at, "%s must be a text, a token or an array of tokens, like the others", at)
		}
		said.text(e)
		form = own
		tokens += given
		n++
	}
	switch {
	case n == 0:
		return 0, 0, invalid("input", "input must not be empty")
	case form == ofTokens:
		return 1, tokens, nil
	case n > MaxInputs:
		return 0, 0, invalid("input", "input must hold at most %d texts", MaxInputs)
	}
	return n, tokens + said.tokens(), nil
}

// formOf returns what an element of the input is, and how many tokens it gives as such.
func formOf(e value) (form, tokens int) {
	switch {
	case e.isString() && !e.is(""):
		return ofTexts, 0
	case e.isNumber():
		if n, ok := integer(e); ok && n >= 0 {
			return ofTokens, 1
		}
	case e.isArray() && !e.empty():
		it := walk(e)
		for t, ok := it.element(); ok; t, ok = it.element() {
			if n, whole := integer(t); !whole || n < 0 {
				return ofNothing, 0
			}
			tokens++
		}
		return ofTokenLists, tokens
	}
	return ofNothing, 0
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
