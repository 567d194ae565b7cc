package openaiapi

import (
	"bytes"
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
	Model        string
	Stream       bool
	IncludeUsage bool // stream_options.include_usage
	HasTools     bool // at least one tool is offered
	HasImages    bool // at least one content part is an image
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
	root := rootOf(body)
	if !root.isObject() {
		return ChatRequest{}, invalid("", "the request body must be a JSON object")
	}
	var f chatFields
	if err := collect(root, f.slot); err != nil {
		return ChatRequest{}, err
	}
	return f.request()
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

// chatFields holds the members of the request that are looked at.
type chatFields struct {
	model, messages, stream, streamOptions, tools value
	n, maxTokens, maxCompletionTokens             value
	temperature, topP                             value
}

// slot returns where the member of that name is kept, nil for one that is not read.
func (f *chatFields) slot(name []byte) (string, *value) {
	switch string(name) {
	case "model":
		return "model", &f.model
	case "messages":
		return "messages", &f.messages
	case "stream":
		return "stream", &f.stream
	case "stream_options":
		return "stream_options", &f.streamOptions
	case "tools":
		return "tools", &f.tools
	case "n":
		return "n", &f.n
	case "max_tokens":
		return "max_tokens", &f.maxTokens
	case "max_completion_tokens":
		return "max_completion_tokens", &f.maxCompletionTokens
	case "temperature":
		return "temperature", &f.temperature
	case "top_p":
		return "top_p", &f.topP
	}
	return "", nil
}

// collect puts the members of the request that are looked at where slot wants them.
func collect(root value, slot func(name []byte) (string, *value)) error {
	it := walk(root)
	for m, ok := it.member(); ok; m, ok = it.member() {
		key := m.key
		if bytes.IndexByte(key, '\\') >= 0 {
			quoted := root[m.start : m.start+len(key)+2]
			plain, _ := quoted.text()
			key = []byte(plain)
		}
		name, place := slot(key)
		if place == nil {
			if twin, known := slot(folded(key)); known != nil {
				return invalid(twin, "%q differs from %s only in its case, and some upstreams would take one for the other", clip(string(key), MaxModelBytes), twin)
			}
			continue
		}
		if *place != nil {
			return invalid(name, "%s is given more than once", name)
		}
		*place = m.val
	}
	return nil
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

func (f *chatFields) request() (ChatRequest, error) {
	var r ChatRequest
	var err error
	if r.Model, err = parseModel(f.model); err != nil {
		return ChatRequest{}, err
	}
	if r.HasImages, err = parseMessages(f.messages); err != nil {
		return ChatRequest{}, err
	}
	if r.Stream, r.IncludeUsage, err = parseStream(f.stream, f.streamOptions); err != nil {
		return ChatRequest{}, err
	}
	if !f.tools.absent() && !f.tools.isArray() {
		return ChatRequest{}, invalid("tools", "tools must be an array")
	}
	r.HasTools = !f.tools.empty()
	if err := f.checkNumbers(); err != nil {
		return ChatRequest{}, err
	}
	return r, nil
}

func (f *chatFields) checkNumbers() error {
	if n, ok := integer(f.n); !f.n.absent() && (!ok || n < 1 || n > MaxChoices) {
		return invalid("n", "n must be an integer from 1 to %d", MaxChoices)
	}
	if n, ok := integer(f.maxTokens); !f.maxTokens.absent() && (!ok || n < 0) {
		return invalid("max_tokens", "max_tokens must be an integer that is not negative")
	}
	if n, ok := integer(f.maxCompletionTokens); !f.maxCompletionTokens.absent() && (!ok || n < 0) {
		return invalid("max_completion_tokens", "max_completion_tokens must be an integer that is not negative")
	}
	if !f.temperature.absent() && !f.temperature.isNumber() {
		return invalid("temperature", "temperature must be a number")
	}
	if !f.topP.absent() && !f.topP.isNumber() {
		return invalid("top_p", "top_p must be a number")
	}
	return nil
}

// integer reads a number that is spelled as an integer; 1.0 and 1e0 are not.
func integer(v value) (int64, bool) {
	if !v.isNumber() || len(v) > 19 {
		return 0, false
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	return n, err == nil
}

func parseModel(v value) (string, error) {
	if v.absent() {
		return "", invalid("model", "model is missing")
	}
	model, ok := v.text()
	if !ok {
		return "", invalid("model", "model must be a string")
	}
	if model == "" {
		return "", invalid("model", "model must not be empty")
	}
	if len(model) > MaxModelBytes {
		return "", invalid("model", "model must be at most %d bytes long", MaxModelBytes)
	}
	for _, r := range model {
		if unicode.IsControl(r) {
			return "", invalid("model", "model must not hold control characters")
		}
	}
	return model, nil
}

// parseMessages checks the messages' frame and looks for images in them.
func parseMessages(v value) (images bool, err error) {
	if v.absent() {
		return false, invalid("messages", "messages is missing")
	}
	if !v.isArray() {
		return false, invalid("messages", "messages must be an array")
	}
	count := 0
	it := walk(v)
	for msg, ok := it.element(); ok; msg, ok = it.element() {
		if count == MaxMessages {
			return false, invalid("messages", "messages must hold at most %d elements", MaxMessages)
		}
		image, err := parseMessage(msg, count)
		if err != nil {
			return false, err
		}
		images = images || image
		count++
	}
	if count == 0 {
		return false, invalid("messages", "messages must not be empty")
	}
	return images, nil
}

func parseMessage(msg value, index int) (image bool, err error) {
	at := func(suffix string) string { return "messages[" + strconv.Itoa(index) + "]" + suffix }
	if !msg.isObject() {
		return false, invalid(at(""), "%s must be an object", at(""))
	}
	var role, content value
	it := walk(msg)
	for m, ok := it.member(); ok; m, ok = it.member() {
		switch {
		case role == nil && sameKey(m.key, "role"):
			role = m.val
		case content == nil && sameKey(m.key, "content"):
			content = m.val
		}
	}
	if role == nil {
		return false, invalid(at(".role"), "%s is missing", at(".role"))
	}
	if !role.isString() {
		return false, invalid(at(".role"), "%s must be a string", at(".role"))
	}
	return hasImage(content), nil
}

func hasImage(content value) bool {
	if !content.isArray() {
		return false
	}
	it := walk(content)
	for part, ok := it.element(); ok; part, ok = it.element() {
		if part.field("type").is("image_url") {
			return true
		}
	}
	return false
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
