package main

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
)

// block is one run of statements: a file, its position there, and whether any
// test reached it.
type block struct {
	file       string
	statements int
	covered    bool
}

// tally sums a package's statements.
type tally struct {
	name       string
	statements int
	covered    int
}

func (t tally) percent() float64 {
	if t.statements == 0 {
		return 100
	}
	return 100 * float64(t.covered) / float64(t.statements)
}

// readBlocks adds lines of the form "file:position statements hits" to blocks. A
// block that is listed more than once is covered when any of its lines says so.
func readBlocks(r io.Reader, blocks map[string]block) error {
	lines := bufio.NewScanner(r)
	for number := 1; lines.Scan(); number++ {
		line := lines.Text()
		if line == "" || strings.HasPrefix(line, "mode: ") {
			continue
		}
		key, b, err := parseBlock(line)
		if err != nil {
			return fmt.Errorf("parse line %d: %w", number, err)
		}
		b.covered = b.covered || blocks[key].covered
		blocks[key] = b
	}
	return lines.Err()
}

func parseBlock(line string) (string, block, error) {
	fields := strings.Fields(line)
	if len(fields) != 3 {
		return "", block{}, fmt.Errorf("%q has %d fields, not 3", line, len(fields))
	}
	colon := strings.LastIndexByte(fields[0], ':')
	if colon <= 0 {
		return "", block{}, fmt.Errorf("%q names no file", line)
	}
	statements, err := strconv.Atoi(fields[1])
	if err != nil {
		return "", block{}, fmt.Errorf("count statements: %w", err)
	}
	hits, err := strconv.ParseUint(fields[2], 10, 64)
	if err != nil {
		return "", block{}, fmt.Errorf("count hits: %w", err)
	}
	return fields[0], block{file: fields[0][:colon], statements: statements, covered: hits > 0}, nil
}

// count sums blocks by package, in the packages' order, without those excluded.
func count(blocks map[string]block, exclude []string) []tally {
	sums := make(map[string]tally)
	for _, b := range blocks {
		name := path.Dir(b.file)
		if slices.ContainsFunc(exclude, func(pattern string) bool { return within(name, pattern) }) {
			continue
		}
		sum := sums[name]
		sum.name = name
		sum.statements += b.statements
		if b.covered {
			sum.covered += b.statements
		}
		sums[name] = sum
	}
	tallies := make([]tally, 0, len(sums))
	for _, sum := range sums {
		tallies = append(tallies, sum)
	}
	slices.SortFunc(tallies, func(a, b tally) int { return strings.Compare(a.name, b.name) })
	return tallies
}

// within says whether a package, or one that it lies below, matches the pattern.
func within(name, pattern string) bool {
	for ; name != "." && name != "/"; name = path.Dir(name) {
		if matched, err := path.Match(pattern, name); err == nil && matched {
			return true
		}
	}
	return false
}
