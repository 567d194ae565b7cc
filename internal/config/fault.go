package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxFaults bounds how many faults one error names.
const maxFaults = 20

// Fault is one thing that is wrong with the configuration. It names the place and
// the setting, never the value.
type Fault struct {
	At      string // file:line:col, or the environment variable; empty when neither is at fault
	Path    string // the setting, such as providers.openai.timeout; empty for a fault of the file as a whole
	Problem string // what is wrong and what to do
}

func (f Fault) Error() string {
	parts := make([]string, 0, 3)
	for _, part := range []string{f.At, f.Path, f.Problem} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ": ")
}

// InvalidError holds what is wrong with a configuration, in the order of the file.
type InvalidError struct {
	Faults []Fault // at most 20
	More   int     // how many were found beyond those
	Hash   string  // of the file that was tried, as Loaded has it; empty: it was not Load that found them
}

func (e *InvalidError) Error() string {
	lines := make([]string, 0, len(e.Faults)+1)
	for _, fault := range e.Faults {
		lines = append(lines, fault.Error())
	}
	if e.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", e.More))
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the faults, so that errors.As finds a Fault.
func (e *InvalidError) Unwrap() []error {
	errs := make([]error, len(e.Faults))
	for i, fault := range e.Faults {
		errs[i] = fault
	}
	return errs
}

// faults collects what is wrong, one fault for each setting: a value that could not
// be read is not reported a second time for what its absence breaks.
type faults struct {
	found []located
	seen  map[string]bool
}

type located struct {
	at      origin
	path    path
	problem string
}

func newFaults() *faults { return &faults{seen: make(map[string]bool)} }

func (f *faults) add(at origin, p path, problem string, args ...any) {
	key := p.String()
	if key != "" && f.seen[key] {
		return
	}
	f.seen[key] = true
	f.found = append(f.found, located{at: at, path: p, problem: fmt.Sprintf(problem, args...)})
}

// within reports whether something at p or below it is already at fault.
func (f *faults) within(p path) bool {
	return slices.ContainsFunc(f.found, func(l located) bool {
		return len(l.path) >= len(p) && slices.Equal(l.path[:len(p)], p)
	})
}

// err returns the faults as one error, or nil if there are none.
func (f *faults) err() error {
	if len(f.found) == 0 {
		return nil
	}
	slices.SortStableFunc(f.found, func(a, b located) int {
		return cmp.Or(
			cmp.Compare(a.at.env, b.at.env),
			cmp.Compare(a.at.line, b.at.line),
			cmp.Compare(a.at.col, b.at.col),
			cmp.Compare(a.path.String(), b.path.String()),
		)
	})
	shown := f.found[:min(len(f.found), maxFaults)]
	invalid := &InvalidError{More: len(f.found) - len(shown)}
	for _, l := range shown {
		invalid.Faults = append(invalid.Faults, Fault{At: l.at.String(), Path: l.path.String(), Problem: l.problem})
	}
	return invalid
}
