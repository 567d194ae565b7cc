package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/limits"
)

// maxLimitsFile bounds a file of limits.
const maxLimitsFile = 64 << 10

// limitFlags are the flags by which a command sets limits.
type limitFlags struct {
	cmd      *cobra.Command
	file     string
	none     bool
	counts   map[string]*int64
	money    map[string]*string
	onLimit  string
	anything []string // names of all flags
}

// addLimitFlags adds the flags, and one that takes limits away if there can be some.
func addLimitFlags(cmd *cobra.Command, removable bool) *limitFlags {
	f := &limitFlags{cmd: cmd, counts: make(map[string]*int64), money: make(map[string]*string)}
	for _, c := range []struct{ name, usage string }{
		{"requests-per-minute", "requests accepted in any 60 seconds; 0 is no bound"},
		{"tokens-per-minute", "tokens of prompts and answers in any 60 seconds; 0 is no bound"},
		{"concurrent", "requests accepted and not yet answered; 0 is no bound"},
		{"queued", "requests that no worker has begun, background jobs and batches aside; 0 is no bound"},
	} {
		f.counts[c.name] = cmd.Flags().Int64(c.name, 0, c.usage)
		f.anything = append(f.anything, c.name)
	}
	for _, window := range []string{"day", "week", "month"} {
		name := "budget-" + window
		f.money[name] = cmd.Flags().String(name, "", "money for requests in a "+window+" of UTC, such as 12.50; 0 is no bound")
		f.anything = append(f.anything, name)
	}
	cmd.Flags().StringVar(&f.onLimit, "on-limit", "", "what becomes of a request that does not fit now: refuse or queue; without a bound beside it, for the bounds that the ingress has for all others")
	cmd.Flags().StringVar(&f.file, "limits", "", "`FILE` with all limits as a JSON object, those of models too; - is standard input")
	f.anything = append(f.anything, "on-limit")
	if removable {
		cmd.Flags().BoolVar(&f.none, "no-limits", false, "take the limits away, so that those hold which the ingress has for all others")
	}
	return f
}

func (f *limitFlags) changed(names ...string) bool {
	for _, name := range names {
		if f.cmd.Flags().Changed(name) {
			return true
		}
	}
	return false
}

// given reports whether the command line says anything about limits.
func (f *limitFlags) given() bool { return f.none || f.file != "" || f.changed(f.anything...) }

// apply returns the limits that the flags make of those there are, nil being none.
func (f *limitFlags) apply(there *limits.Limits) (*limits.Limits, error) {
	switch {
	case f.none && (f.file != "" || f.changed(f.anything...)):
		return nil, usageError{errors.New("--no-limits stands alone")}
	case f.none:
		return nil, nil //nolint:nilnil // no limits of its own are limits like any other
	case !f.given():
		return there, nil
	}
	var l limits.Limits
	if there != nil {
		l = *there
	}
	if f.file != "" {
		var err error
		if l, err = readLimits(f.cmd.InOrStdin(), f.file); err != nil {
			return nil, err
		}
	}
	for name, into := range map[string]*int64{
		"requests-per-minute": &l.RequestsPerMinute, "tokens-per-minute": &l.TokensPerMinute, "concurrent": &l.Concurrent, "queued": &l.Queued,
	} {
		if f.changed(name) {
			*into = *f.counts[name]
		}
	}
	for name, into := range map[string]*inference.Cost{"budget-day": &l.Budget.Day, "budget-week": &l.Budget.Week, "budget-month": &l.Budget.Month} {
		if !f.changed(name) {
			continue
		}
		amount, err := inference.ParseCost(*f.money[name])
		if err != nil {
			return nil, usageError{fmt.Errorf("--%s %w", name, err)}
		}
		*into = amount
	}
	if f.changed("on-limit") {
		l.OnLimit = limits.Action(f.onLimit)
	}
	if err := l.Validate(); err != nil {
		return nil, usageError{fmt.Errorf("limits: %w", err)}
	}
	return &l, nil
}

func readLimits(stdin io.Reader, path string) (l limits.Limits, err error) {
	from := stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return l, fmt.Errorf("--limits: %w", err)
		}
		defer func() { _ = file.Close() }() // it was read only
		from = file
	}
	text, err := io.ReadAll(io.LimitReader(from, maxLimitsFile+1))
	if err == nil && len(text) > maxLimitsFile {
		err = fmt.Errorf("is longer than %d bytes", maxLimitsFile)
	}
	if err == nil {
		err = adminapi.Decode(text, &l)
	}
	if err != nil {
		return l, fmt.Errorf("--limits %s: %w", path, err)
	}
	return l, nil
}
