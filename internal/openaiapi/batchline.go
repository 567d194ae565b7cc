package openaiapi

import (
	"errors"
	"unicode/utf8"
)

// BatchLine is one line of a batch's input file: a call to be made later. Body shares the
// line's memory.
type BatchLine struct {
	CustomID string
	Method   string
	URL      string
	Body     []byte
}

// Errors of a line that is none.
var (
	// ErrLineNotJSON says that the line is not one JSON object, in UTF-8 and of a depth
	// that is taken.
	ErrLineNotJSON = errors.New("line is not a JSON object")
	// ErrLineAmbiguous says that a member stands in the line twice.
	ErrLineAmbiguous = errors.New("line has a member twice")
)

// BatchField is a member of a line that is not as it must be.
type BatchField struct {
	Name    string
	Missing bool
}

func (f *BatchField) Error() string { return "line's " + f.Name + " cannot be used" }

// The members of a line that are looked at.
const (
	inCustomID = iota
	inMethod
	inURL
	inBody
	lineMembers
)

func lineMember(name []byte) (string, int) {
	switch string(name) {
	case "custom_id":
		return "custom_id", inCustomID
	case "method":
		return "method", inMethod
	case "url":
		return "url", inURL
	case "body":
		return "body", inBody
	}
	return "", -1
}

// ParseBatchLine reads a line. Its error is ErrLineNotJSON, ErrLineAmbiguous or a
// *BatchField. What the texts say and what the body asks for is not looked at.
func ParseBatchLine(line []byte) (BatchLine, error) {
	if check(line) != nil || !utf8.Valid(line) {
		return BatchLine{}, ErrLineNotJSON
	}
	root := rootOf(line)
	if !root.isObject() {
		return BatchLine{}, ErrLineNotJSON
	}
	var f [lineMembers]value
	if collect(root, lineMember, f[:], nil) != nil {
		return BatchLine{}, ErrLineAmbiguous
	}
	var l BatchLine
	for i, into := range []*string{inCustomID: &l.CustomID, inMethod: &l.Method, inURL: &l.URL} {
		name := [...]string{"custom_id", "method", "url"}[i]
		if f[i].absent() {
			return BatchLine{}, &BatchField{name, true}
		}
		text, ok := f[i].text()
		if !ok {
			return BatchLine{}, &BatchField{name, false}
		}
		*into = text
	}
	switch {
	case f[inBody].absent():
		return BatchLine{}, &BatchField{"body", true}
	case !f[inBody].isObject():
		return BatchLine{}, &BatchField{"body", false}
	}
	l.Body = f[inBody]
	return l, nil
}
