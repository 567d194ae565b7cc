package adminapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// Doubled returns where an object of the valid JSON text has a member for the second time, as
// in limits.models[0].queued, and whether there is such a place. Readers differ in which of
// the two they take.
func Doubled(text []byte) (at string, found bool) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	at, found = doubledIn(dec)
	return strings.TrimPrefix(at, "."), found
}

// doubledIn reads one value of the text. Where it has found something, nothing more is read.
func doubledIn(dec *json.Decoder) (at string, found bool) {
	begin, _ := dec.Token() // the text is valid, so that there is one
	object := begin == json.Delim('{')
	if !object && begin != json.Delim('[') {
		return "", false
	}
	seen := make(map[string]bool)
	for i := 0; dec.More(); i++ {
		var name string
		if object {
			token, _ := dec.Token()
			name, _ = token.(string)
			if seen[name] {
				return "." + name, true
			}
			seen[name] = true
		}
		at, found := doubledIn(dec)
		switch {
		case found && object:
			return "." + name + at, true
		case found:
			return fmt.Sprintf("[%d]%s", i, at), true
		}
	}
	_, _ = dec.Token() // its end
	return "", false
}
