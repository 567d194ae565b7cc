// Command coverage reads text coverage profiles, prints what share of each
// package's statements ran, and fails when the whole is below a minimum.
//
// What several test binaries and the product's own binary reported about the same
// block counts once. It does not run tests.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "coverage:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("coverage", flag.ContinueOnError)
	minimum := flags.Float64("min", 80, "the least percentage of statements that must have run")
	exclude := flags.String("exclude", "", "patterns of import paths that do not count, with all below them, separated by commas")
	if err := flags.Parse(args); err != nil {
		return err
	}
	patterns := splitList(*exclude)
	for _, pattern := range patterns {
		if _, err := path.Match(pattern, ""); err != nil {
			return fmt.Errorf("read pattern %q: %w", pattern, err)
		}
	}
	blocks := make(map[string]block)
	for _, name := range flags.Args() {
		if err := readProfile(name, blocks); err != nil {
			return fmt.Errorf("read profile %s: %w", name, err)
		}
	}
	return report(out, count(blocks, patterns), *minimum)
}

func readProfile(name string, blocks map[string]block) error {
	content, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return readBlocks(bytes.NewReader(content), blocks)
}

// report prints one line for each package and one for the whole, and returns an
// error when the whole is below minimum. No statements at all is an error too:
// profiles that lost their content must not pass.
func report(out io.Writer, packages []tally, minimum float64) error {
	var total tally
	for _, p := range packages {
		fmt.Fprintf(out, "%6.1f%%  %5d statements  %s\n", p.percent(), p.statements, p.name)
		total.statements += p.statements
		total.covered += p.covered
	}
	if total.statements == 0 {
		return errors.New("the profiles hold no statements that count")
	}
	fmt.Fprintf(out, "%6.1f%%  %5d statements  in all, at least %.1f%% wanted\n", total.percent(), total.statements, minimum)
	if total.percent() < minimum {
		return fmt.Errorf("%.1f%% of statements ran, at least %.1f%% wanted", total.percent(), minimum)
	}
	return nil
}

func splitList(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}
