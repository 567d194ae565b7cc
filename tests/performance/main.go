// Command performance measures what Sluice adds to calling a provider directly,
// beside what the standard library's reverse proxy adds, and what it does under more
// load than the provider can take.
//
// The load generator, the scripted upstream and each system under test are processes
// of their own; the first two and the proxy are this same binary with a subcommand.
// Systems take turns within one run, since figures of different runs compare only as
// ratios to their own run's proxy. The load is open: a request is sent when it is
// due, whether or not earlier ones were answered, and its latency counts from then.
//
// It never leaves the loopback interface and is no part of the tests.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
)

const usageText = `Usage:
  performance [run] [-quick] [-systems a,b] [-scenarios a,b] [-out FILE] [-markdown]
  performance report [-markdown] FILE
  performance compare [-baseline FILE] [-slack N] FILE

run measures and prints; report prints an earlier run's file; compare holds one
against the baseline and exits with 1 when a figure is worse.
`

var errWorse = errors.New("worse than the baseline")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil && interrupted:
		_, _ = fmt.Fprintln(os.Stderr, "performance: interrupted")
		os.Exit(130) // 128 and SIGINT's number, as shells count
	case err != nil:
		_, _ = fmt.Fprintln(os.Stderr, "performance:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string, in io.Reader, out, progress io.Writer) error {
	name := "run"
	if len(args) > 0 && args[0][0] != '-' {
		name, args = args[0], args[1:]
	}
	switch name {
	case "run":
		return runCommand(ctx, args, out, progress)
	case "report":
		return reportCommand(args, out, progress)
	case "compare":
		return compareCommand(args, out, progress)
	case "load":
		return runLoad(ctx, in, out)
	case "upstream":
		return runUpstream(ctx, out)
	case "proxy":
		if len(args) >= 2 {
			if most, err := strconv.Atoi(args[0]); err == nil {
				return runProxy(ctx, out, args[1:], most)
			}
		}
	}
	return fmt.Errorf("unknown command %q\n%s", name, usageText)
}

func newFlags(name string, errors io.Writer) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(errors)
	flags.Usage = func() {
		_, _ = fmt.Fprint(errors, usageText, "\nFlags of ", name, ":\n")
		flags.PrintDefaults()
	}
	return flags
}

func runCommand(ctx context.Context, args []string, out, progress io.Writer) error {
	flags := newFlags("run", progress)
	quick := flags.Bool("quick", false, "take about two minutes: one short round, coarse figures")
	systems := flags.String("systems", "", "only these, comma-separated (default all)")
	scenarios := flags.String("scenarios", "", "only these: calls, streams, overload, fleet, batch, beside, cache (default all)")
	rounds := flags.Int("rounds", 0, "how many rounds instead of the plan's")
	even := flags.Bool("even", false, "evenly spaced arrivals instead of independent ones")
	file := flags.String("out", "", "write the report as JSON to this file")
	markdown := flags.Bool("markdown", false, "print the tables as Markdown")
	sluice := flags.String("sluice", "", "measure this binary instead of building one")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if runtime.GOOS != "linux" {
		return errors.New("CPU time and memory are read from /proc, which only Linux has")
	}
	o := runOptions{plan: fullPlan(), quick: *quick, sluice: *sluice}
	if *quick {
		o.plan = quickPlan()
	}
	if *rounds > 0 {
		o.rounds = *rounds
	}
	o.even = *even
	var err error
	if o.systems, err = choose("system", *systems, allSystems()); err != nil {
		return err
	}
	if o.scenarios, err = choose("scenario", *scenarios, allScenarios()); err != nil {
		return err
	}
	r, err := runBench(ctx, o, progress)
	if err != nil {
		return err
	}
	if *file != "" {
		if err := r.write(*file); err != nil {
			return err
		}
	}
	return r.show(out, *markdown)
}

func (r *report) show(w io.Writer, markdown bool) error {
	if markdown {
		return r.printMarkdown(w)
	}
	return r.print(w)
}

func reportCommand(args []string, out, errors io.Writer) error {
	flags := newFlags("report", errors)
	markdown := flags.Bool("markdown", false, "print the tables as Markdown")
	if err := flags.Parse(args); err != nil {
		return err
	}
	r, err := readReport(flags.Arg(0))
	if err != nil {
		return err
	}
	return r.show(out, *markdown)
}

func compareCommand(args []string, out, problems io.Writer) error {
	flags := newFlags("compare", problems)
	path := flags.String("baseline", "tests/performance/baseline.json", "the run to hold against")
	slack := flags.Float64("slack", 1, "multiply every tolerance by this")
	if err := flags.Parse(args); err != nil {
		return err
	}
	baseline, err := readReport(*path)
	if err != nil {
		return err
	}
	run, err := readReport(flags.Arg(0))
	if err != nil {
		return err
	}
	if run.CPUs != baseline.CPUs || run.Quick != baseline.Quick {
		_, _ = fmt.Fprintf(problems, "note: the baseline has %d CPUs (quick: %t), this run %d (quick: %t)\n",
			baseline.CPUs, baseline.Quick, run.CPUs, run.Quick)
	}
	findings := compare(baseline, run, *slack)
	if len(findings) == 0 {
		return errors.New("compare: the two runs have no figure in common")
	}
	worse, err := printFindings(out, findings)
	if err != nil {
		return err
	}
	if worse > 0 {
		return fmt.Errorf("%w: %d of %d figures", errWorse, worse, len(findings))
	}
	return nil
}
