package admin

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"sluice/internal/adminapi"
)

// checkName returns what is wrong with the name of something new. What is stored already may
// be called otherwise. A path's clients resolve the segments "." and "..", so that nobody
// could ask for a name that has one.
func checkName(field, subject, name string) error {
	var problem string
	switch {
	case name == "":
		problem = "must not be empty"
	case !utf8.ValidString(name):
		problem = "must be UTF-8"
	case utf8.RuneCountInString(name) > adminapi.MaxName:
		return invalid(field, "%s must be at most %d characters long.", subject, adminapi.MaxName)
	case strings.ContainsFunc(name, unicode.IsControl):
		problem = "must not hold control characters"
	case strings.TrimSpace(name) != name:
		problem = "must not begin or end with a space"
	case slices.ContainsFunc(strings.Split(name, "/"), func(s string) bool { return s == "." || s == ".." }):
		problem = `must not have "." or ".." for a part`
	default:
		return nil
	}
	return invalid(field, "%s %s.", subject, problem)
}
