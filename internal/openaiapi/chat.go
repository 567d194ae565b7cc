package openaiapi

import (
	"bytes"
	"math"
	"strconv"
	"unicode"
	"unicode/utf8"

	"sluice/internal/inference"
)

// Bounds on a request that this package enforces.
const (
	MaxModelBytes = 256
	MaxMessages   = 10_000
	MaxChoices    = 128
)

// ChatRequest is what Sluice itself needs of a chat-completions request.
type ChatRequest struct {
	Features

	Stream       bool
	IncludeUsage bool // stream_options.include_usage
	HasTools     bool // at least one tool is offered, in tools or in the older functions
	HasImages    bool // at least one content part is an image
	Structured   bool // response_format asks for an answer that follows a JSON Schema
	MaxOutput    int  // tokens of one choice: the larger of max_completion_tokens and max_tokens, since upstreams differ in which they read; zero when neither bounds the answer
	Choices      int  // n; zero when the request does not say it, which stands for 1
}

// ParseChat checks a chat-completions request and reads what is needed of it. The
// error is always an *inference.Error that names the field at fault.
//
// Only what Sluice relies upon, and what no upstream can mean otherwise, is
// checked; unknown fields are nobody's business here. An optional field that is
// null counts as absent. Text that is not valid UTF-8 is refused, although
// encoding/json lets it pass: it would be changed on its way by anything that
// decodes it. A member that is read here may stand in the request only once,
// because two parsers may disagree about which one counts.
func ParseChat(body []byte) (ChatRequest, error) {
	if err := checkBody(body); err != nil {
		return ChatRequest{}, err
	}
	root := rootOfChecked(body)
	if !root.isObject() {
		return ChatRequest{}, invalid("", "the request body must be a JSON object")
	}
	var f chatFields
	var said prompt
	if err := collect(root, chatMember, f[:], &said); err != nil {
		return ChatRequest{}, err
	}
	return f.request(&said)
}

// checkBody says whether the body is JSON of acceptable depth. Its result is nil
// or an *inference.Error, kept as error so that nil stays nil.
func checkBody(body []byte) error {
	if skipSpace(body, 0) == len(body) {
		return inference.Errorf(inference.CodeInvalidJSON, "the request body is empty")
	}
	if bad := check(body); bad != nil {
		if bad.tooDeep {
			return invalid("", "the request body is nested more than %d levels deep", maxDepth)
		}
		return inference.Errorf(inference.CodeInvalidJSON, "the request body is not valid JSON: %s", bad.Error())
	}
	if !utf8.Valid(body) {
		return inference.Errorf(inference.CodeInvalidJSON,
			"the request body is not valid JSON: invalid UTF-8 at offset %d", invalidUTF8At(body))
	}
	return nil
}

func invalidUTF8At(data []byte) int {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return len(data)
}

func invalid(param, format string, args ...any) error {
	e := inference.Errorf(inference.CodeInvalidRequest, format, args...)
	e.Param = param
	return e
}

// The members of a request that every endpoint looks at.
const (
	inModel = iota
	inMetadata
	inUser
	inSafetyIdentifier
	commonMembers
)

// Those that a chat-completions request has besides.
const (
	inMessages = iota + commonMembers
	inStream
	inStreamOptions
	inTools
	inFunctions
	inResponseFormat
	inN
	inMaxTokens
	inMaxCompletionTokens
	inTemperature
	inTopP
	chatMembers
)

type chatFields [chatMembers]value

// commonMember returns where the member of that name is kept, with its name, or -1 for
// one that is not read.
func commonMember(name []byte) (string, int) {
	switch string(name) {
	case "model":
		return "model", inModel
	case "metadata":
		return "metadata", inMetadata
	case "user":
		return "user", inUser
	case "safety_identifier":
		return "safety_identifier", inSafetyIdentifier
	}
	return "", -1
}

func chatMember(name []byte) (string, int) {
	switch string(name) {
	case "messages":
		return "messages", inMessages
	case "stream":
		return "stream", inStream
	case "stream_options":
		return "stream_options", inStreamOptions
	case "tools":
		return "tools", inTools
	case "functions":
		return "functions", inFunctions
	case "response_format":
		return "response_format", inResponseFormat
	case "n":
		return "n", inN
	case "max_tokens":
		return "max_tokens", inMaxTokens
	case "max_completion_tokens":
		return "max_completion_tokens", inMaxCompletionTokens
	case "temperature":
		return "temperature", inTemperature
	case "top_p":
		return "top_p", inTopP
	}
	return commonMember(name)
}

// collect puts the members of the request that are looked at where place wants them. The
// text of the others that a model may read is counted as said, if that is asked for.
func collect(root value, place func(name []byte) (string, int), into []value, said *prompt) error {
	it := walk(root)
	for m, ok := it.member(); ok; m, ok = it.member() {
		key := m.key
		if bytes.IndexByte(key, '\\') >= 0 {
			quoted := root[m.start : m.start+len(key)+2]
			plain, _ := quoted.text()
			key = []byte(plain)
		}
		name, i := place(key)
		if i < 0 {
			if twin, known := place(folded(key)); known >= 0 {
				return invalid(twin, "%q differs from %s only in its case, and some upstreams would take one for the other", clip(string(key), MaxModelBytes), twin)
			}
			if said != nil && mayBeRead(key) {
				said.sayBeside(m.val)
			}
			continue
		}
		if into[i] != nil {
			return invalid(name, "%s is given more than once", name)
		}
		into[i] = m.val
	}
	return nil
}

// mayBeRead reports whether a member that is not looked at may be text for the model: of
// one that is not known here, such as the documents that some upstreams take, nobody knows.
// A prediction is charged for like an answer.
func mayBeRead(key []byte) bool {
	return string(key) == "prediction" || placeOf(string(key)) == asWritten
}

// folded is a member's name as a reader takes it that does not tell cases apart, such as
// Go's encoding/json; nil when it is no other than it was.
func folded(key []byte) []byte {
	plain := true
	for _, c := range key {
		plain = plain && c < utf8.RuneSelf && (c < 'A' || c > 'Z')
	}
	if plain || len(key) > MaxModelBytes {
		return nil
	}
	return bytes.Map(func(r rune) rune {
		switch r {
		case '\u017f': // the long s
			return 's'
		case '\u212a': // the sign for Kelvin
			return 'k'
		}
		return unicode.ToLower(r)
	}, key)
}

// request reads the fields. What they say is added to what others said.
func (f *chatFields) request(said *prompt) (ChatRequest, error) {
	var r ChatRequest
	var err error
	if r.Features, err = parseFeatures(f[:commonMembers]); err != nil {
		return ChatRequest{}, err
	}
	if err = parseMessages(f[inMessages], said); err != nil {
		return ChatRequest{}, err
	}
	if r.Stream, r.IncludeUsage, err = parseStream(f[inStream], f[inStreamOptions]); err != nil {
		return ChatRequest{}, err
	}
	tools, functions := f[inTools], f[inFunctions]
	if !tools.absent() && !tools.isArray() {
		return ChatRequest{}, invalid("tools", "tools must be an array")
	}
	if !functions.isArray() {
		functions = nil
	}
	r.HasTools, r.HasImages = !tools.empty() || !functions.empty(), said.images > 0
	f.define(said)
	r.PromptTokens = said.tokens()
	if format := f[inResponseFormat]; format != nil {
		r.Structured = format.field("type").is("json_schema")
	}
	if r.MaxOutput, r.Choices, err = f.checkNumbers(); err != nil {
		return ChatRequest{}, err
	}
	return r, nil
}

// define counts what the request tells the model beside its messages.
func (f *chatFields) define(said *prompt) {
	said.define(f[inTools])
	if functions := f[inFunctions]; functions.isArray() {
		said.define(functions)
	}
	if format := f[inResponseFormat]; format.isObject() {
		said.part(format)
	}
}

// checkNumbers returns the bound of the length of each choice, and how many there are to be.
func (f *chatFields) checkNumbers() (most, choices int, err error) {
	n, ok := integer(f[inN])
	if !f[inN].absent() && (!ok || n < 1 || n > MaxChoices) {
		return 0, 0, invalid("n", "n must be an integer from 1 to %d", MaxChoices)
	}
	older, ok := integer(f[inMaxTokens])
	if !f[inMaxTokens].absent() && (!ok || older < 0) {
		return 0, 0, invalid("max_tokens", "max_tokens must be an integer that is not negative")
	}
	bound, ok := integer(f[inMaxCompletionTokens])
	if !f[inMaxCompletionTokens].absent() && (!ok || bound < 0) {
		return 0, 0, invalid("max_completion_tokens", "max_completion_tokens must be an integer that is not negative")
	}
	if !f[inTemperature].absent() && !f[inTemperature].isNumber() {
		return 0, 0, invalid("temperature", "temperature must be a number")
	}
	if !f[inTopP].absent() && !f[inTopP].isNumber() {
		return 0, 0, invalid("top_p", "top_p must be a number")
	}
	return int(min(max(bound, older), math.MaxInt32)), int(n), nil
}

// integer reads a number that is spelled as an integer; 1.0 and 1e0 are not.
func integer(v value) (int64, bool) {
	if !v.isNumber() || len(v) > 19 {
		return 0, false
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	return n, err == nil
}

func parseStream(stream, options value) (on, usage bool, err error) {
	if !stream.absent() && !stream.isBool() {
		return false, false, invalid("stream", "stream must be true or false")
	}
	on = stream.kind() == 't'
	if options.absent() {
		return on, false, nil
	}
	if !options.isObject() {
		return false, false, invalid("stream_options", "stream_options must be an object")
	}
	if !on {
		return false, false, invalid("stream_options", "stream_options is only allowed when stream is true")
	}
	var include value
	it := walk(options)
	for m, ok := it.member(); ok; m, ok = it.member() {
		if !sameKey(m.key, "include_usage") {
			continue
		}
		if include != nil {
			return false, false, invalid("stream_options.include_usage", "stream_options.include_usage is given more than once")
		}
		include = m.val
	}
	if !include.absent() && !include.isBool() {
		return false, false, invalid("stream_options.include_usage", "stream_options.include_usage must be true or false")
	}
	return on, include.kind() == 't', nil
}
