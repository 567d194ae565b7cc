package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// runOptions say what a run measures.
type runOptions struct {
	plan
	quick     bool
	systems   []string
	scenarios []string
	sluice    string // path of a built binary; empty: built from the working tree
}

// runBench runs the scenarios on the systems in turn, round after round, each time
// beginning with another system, and tells its progress.
func runBench(ctx context.Context, o runOptions, progress io.Writer) (r *report, err error) {
	dir, err := os.MkdirTemp("", "sluice-bench-")
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{dir: dir, sluice: o.sluice, key: "sk-bench-" + rand.Text()}
	if b.sluice == "" && slices.ContainsFunc(o.systems, isSluice) {
		_, _ = fmt.Fprintln(progress, "building sluice")
		if b.sluice, err = buildSluice(ctx, dir); err != nil {
			return nil, err
		}
	}
	upstream, addresses, err := startChild(ctx, dir, "upstream", "upstream")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, upstream.stop()) }()
	b.upstream, b.thinking, b.members = addresses[0], addresses[1], addresses[2:]
	r = &report{
		Started: time.Now().UTC().Truncate(time.Second),
		Go:      runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(),
		Quick: o.quick, Even: o.even, Systems: o.systems,
		Figures: map[string]figures{}, Failures: map[string]map[string]int{},
	}
	for round := range o.rounds {
		figures, err := b.round(ctx, o, r, round, progress)
		if err != nil {
			return nil, err
		}
		r.Rounds = append(r.Rounds, figures)
	}
	r.finish()
	return r, nil
}

func (b *bench) round(ctx context.Context, o runOptions, r *report, round int, progress io.Writer) (map[string]figures, error) {
	result := map[string]figures{}
	for _, system := range o.systems {
		result[system] = figures{}
	}
	for _, scenario := range o.scenarios {
		for i := range o.systems {
			system := o.systems[(i+round)%len(o.systems)]
			if !o.measures(scenario, system, round) {
				continue
			}
			_, _ = fmt.Fprintf(progress, "round %d of %d: %s, %s\n", round+1, o.rounds, scenario, system)
			m, err := b.measure(ctx, o.plan, system, scenario, round)
			if err != nil {
				return nil, err
			}
			maps.Copy(result[system], m.figures)
			r.addFailures(system, m.failures)
		}
	}
	addOverDirect(result)
	return result, nil
}

// measures says whether a system has a part in a scenario. An overload says nothing of
// the upstream alone, a fleet is served by a proxy that deals out or by workers
// that each stand beside an upstream, and only Sluice has batches. A governed Sluice is
// measured where it may cost something to govern, and one that keeps answers where there
// are any to keep.
func (p plan) measures(scenario, system string, round int) bool {
	switch system {
	case systemGoverned:
		return scenario == scenarioCalls || scenario == scenarioStreams
	case systemCached:
		return scenario == scenarioCalls || scenario == scenarioCache
	}
	switch scenario {
	case scenarioOverload:
		return system != systemDirect && round < p.overloadRounds
	case scenarioFleet:
		return (system == systemFloor || system == systemExternal) && round < p.overloadRounds
	case scenarioBatch, scenarioBeside:
		return isSluice(system) && round < p.overloadRounds
	case scenarioCache:
		return false
	default:
		return true
	}
}

func (r *report) addFailures(system string, failures map[string]int) {
	if r.Failures[system] == nil {
		r.Failures[system] = map[string]int{}
	}
	for why, n := range failures {
		r.Failures[system][why] += n
	}
}

func (r *report) finish() {
	for _, system := range r.Systems {
		r.Figures[system] = medians(r.Rounds, system)
		failures := 0
		for _, n := range r.Failures[system] {
			failures += n
		}
		r.Figures[system]["failures"] = float64(failures)
	}
	r.Aims = judge(r.Figures)
	r.Seconds = time.Since(r.Started).Round(time.Second).Seconds()
}

func isSluice(system string) bool { return strings.HasPrefix(system, systemSluice) }

// choose reads a list of names, each of which must be known, in the order in which
// all stand.
func choose(what, list string, all []string) ([]string, error) {
	if list == "" {
		return all, nil
	}
	asked := strings.Split(list, ",")
	for _, name := range asked {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("unknown %s %q; known are %s", what, name, strings.Join(all, ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(name string) bool { return !slices.Contains(asked, name) }), nil
}
