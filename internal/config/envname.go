package config

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// FileVariable is the variable that names the configuration file. It is read by
// commands, and is no setting.
const FileVariable = envPrefix + "CONFIG"

// UnknownVariable is a variable that begins with SLUICE_ and gives no setting. It is
// worth a warning and no more: other programs may use the prefix.
type UnknownVariable struct {
	Name string
	Near string // the variable that a person most likely meant; may be empty
}

// String says what is wrong, without the variable's value.
func (u UnknownVariable) String() string {
	text := "environment variable " + u.Name + " is no setting"
	if u.Near != "" {
		text += "; did you mean " + u.Near + "?"
	}
	return text
}

// ownNames begin the variables, without the prefix, that are known and no settings:
// those of the tests, and the key that a client's examples use.
var ownNames = []string{"TEST_", "TESTKIT_", "COVER_", "E2E_", "API_KEY"}

// The variables that Kubernetes makes for each service whose name begins with sluice.
// One of them has a name that a person might try, and is known by its value.
const (
	servicePattern = `^(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`
	portPattern    = `^(.+_)?PORT=(tcp|udp|sctp)://`
)

// isForeign reports whether the variable, given without its prefix, was surely not
// meant to be a setting.
func isForeign(rest, value string) bool {
	return envPrefix+rest == FileVariable ||
		slices.ContainsFunc(ownNames, func(own string) bool { return strings.HasPrefix(rest, own) }) ||
		regexp.MustCompile(servicePattern).MatchString(rest) ||
		regexp.MustCompile(portPattern).MatchString(rest+"="+value)
}

// nearestVariable returns the known variable that the rest of a name most likely stood
// for: the one that differs least, or else one from which the section was left out.
func nearestVariable(root *node, s *spec, rest string) string {
	const tolerance = 4 // one character in so many may be wrong
	known := append(variablesOf(root, s, "", rest), strings.TrimPrefix(FileVariable, envPrefix))
	best, bestDistance := "", 0
	for _, name := range known {
		distance := editDistance(rest, name)
		if distance > 0 && distance <= max(2, len(name)/tolerance) && distance < len(rest) && (best == "" || distance < bestDistance) {
			best, bestDistance = name, distance
		}
	}
	if i := slices.IndexFunc(known, func(name string) bool { return strings.HasSuffix(name, "_"+rest) }); best == "" && i >= 0 && rest != "" {
		best = known[i]
	}
	if best == "" {
		return ""
	}
	return envPrefix + best
}

// variablesOf returns the variables of all settings below s, without their prefix. The
// names and numbers in them are those of the file, and those that rest itself may have.
func variablesOf(n *node, s *spec, before, rest string) []string {
	var names []string
	below := func(n *node, s *spec, segment string) {
		if before != "" {
			segment = before + "_" + segment
		}
		names = append(names, variablesOf(n, s, segment, rest)...)
	}
	switch {
	case s.kind == kindStruct:
		for _, f := range s.fields {
			below(child(n, f.name), f, strings.ToUpper(f.name))
		}
	case s.kind == kindMap:
		for _, name := range elementNames(n, before, rest) {
			below(child(n, name), s.elem, strings.ToUpper(plainName(name)))
		}
	case s.kind == kindList && s.elem.kind == kindStruct:
		tail, _ := strings.CutPrefix(rest, before+"_")
		digits, _, _ := strings.Cut(tail, "_")
		if i, err := strconv.Atoi(digits); err == nil && i >= 0 {
			below(nil, s.elem, strconv.Itoa(i))
		}
	default:
		names = append(names, before)
	}
	return names
}

// elementNames returns the names in a section of the file, and all that the rest of a
// variable's name may hold behind the section's own: with "_" in names and in
// settings, each of them could end the name.
func elementNames(n *node, before, rest string) []string {
	var names []string
	if n != nil {
		for _, e := range n.entries {
			names = append(names, e.key)
		}
	}
	if tail, ok := strings.CutPrefix(rest, before+"_"); ok {
		for i := range len(tail) {
			if tail[i] == '_' && i > 0 {
				names = append(names, strings.ToLower(tail[:i]))
			}
		}
	}
	return names
}

func child(n *node, segment string) *node {
	if n == nil || n.kind != nodeMap {
		return nil
	}
	return n.child(segment)
}
