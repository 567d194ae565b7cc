package openaiapi

import "unicode"

// Bounds on what is read of a request's metadata and of the end user whom it names. The
// metadata's are those of OpenAI's API reference.
const (
	MaxMetadata      = 16  // pairs
	maxMetadataKey   = 64  // bytes
	maxMetadataValue = 512 // bytes
	maxUserBytes     = 512
)

// Features are what routing needs to know of a request of any kind.
type Features struct {
	Model string

	// Metadata is the request's field of that name; nil when it has none. Entries that
	// are no strings, that are longer than OpenAI's API takes or too many are left out:
	// they are the upstream's to refuse.
	Metadata map[string]string

	// User is the end user whom the request names: safety_identifier, else the older
	// user. prompt_cache_key names none: it stands for prompts that are alike.
	User string

	PromptTokens int // estimated
}

// parseFeatures reads the members that every endpoint has. It leaves PromptTokens to the
// endpoint.
func parseFeatures(f []value) (r Features, err error) {
	if r.Model, err = parseModel(f[inModel]); err != nil {
		return Features{}, err
	}
	if r.Metadata, err = parseMetadata(f[inMetadata]); err != nil {
		return Features{}, err
	}
	if r.User = parseUser(f[inSafetyIdentifier]); r.User == "" {
		r.User = parseUser(f[inUser])
	}
	return r, nil
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

// parseMetadata reads the strings of an object. One key may stand in it only once, for
// the reason that ParseChat gives.
func parseMetadata(v value) (map[string]string, error) {
	if !v.isObject() || v.empty() {
		return nil, nil
	}
	var found map[string]string
	it := walk(v)
	for m, ok := it.member(); ok; m, ok = it.member() {
		key, fits := bounded(quotedKey(v, m), maxMetadataKey)
		if !fits {
			continue
		}
		text, fits := bounded(m.val, maxMetadataValue)
		if !fits {
			continue
		}
		if _, twice := found[key]; twice {
			return nil, invalid("metadata", "metadata has a key more than once")
		}
		if found == nil {
			found = make(map[string]string)
		}
		if len(found) == MaxMetadata {
			continue
		}
		found[key] = text
	}
	return found, nil
}

func quotedKey(object value, m member) value { return object[m.start : m.start+len(m.key)+2] }

// bounded returns a string's content, or false when it is none or longer than that. An
// escape makes at most six bytes of one.
func bounded(v value, most int) (string, bool) {
	if len(v) > 6*most+2 {
		return "", false
	}
	s, ok := v.text()
	return s, ok && len(s) <= most
}

func parseUser(v value) string {
	s, ok := bounded(v, maxUserBytes)
	if !ok {
		return ""
	}
	return s
}
