package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// report is a whole run, as it is written to a file.
type report struct {
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	Go      string    `json:"go"`
	OS      string    `json:"os"`
	Arch    string    `json:"arch"`
	CPUs    int       `json:"cpus"`
	Quick   bool      `json:"quick"`
	Even    bool      `json:"even_arrivals,omitempty"`
	Systems []string  `json:"systems"`

	Figures  map[string]figures        `json:"figures"` // medians over the rounds
	Rounds   []map[string]figures      `json:"rounds"`
	Failures map[string]map[string]int `json:"failures,omitempty"` // system, then why
	Aims     []aimResult               `json:"aims,omitempty"`
}

func readReport(path string) (*report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	var r report
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("read report %s: %w", path, err)
	}
	return &r, nil
}

func (r *report) write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// table is the report's lines: a label and a cell for each system.
func (r *report) table() [][]string {
	rows := [][]string{append([]string{""}, r.Systems...)}
	floor := r.Figures[systemFloor]
	for _, m := range metrics() {
		row := []string{m.label}
		seen := false
		for _, system := range r.Systems {
			value, measured := r.Figures[system][m.name]
			if !measured {
				row = append(row, "–")
				continue
			}
			seen = true
			cell := number(value, m.decimals)
			if by, known := floor[m.name]; known && m.compared == byFloor && system != systemFloor && system != systemDirect {
				cell += fmt.Sprintf(" (×%.2f)", m.ratio(value, by))
			}
			row = append(row, cell)
		}
		if seen {
			rows = append(rows, row)
		}
	}
	return rows
}

func (r *report) headline() string {
	kind := fmt.Sprintf("medians of %d rounds", len(r.Rounds))
	if len(r.Rounds) == 1 {
		kind = "one round"
	}
	return fmt.Sprintf("%s/%s, %d CPUs, %s, loopback, %s; in parentheses: ratio to %s.",
		r.OS, r.Arch, r.CPUs, r.Go, kind, systemFloor)
}

// print writes the report for a terminal.
func (r *report) print(w io.Writer) error {
	var b strings.Builder
	rows := r.table()
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	for _, row := range rows {
		fmt.Fprintf(&b, "%-*s", widths[0], row[0])
		for i, cell := range row[1:] {
			fmt.Fprintf(&b, "  %*s", widths[i+1], cell)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "\n%s\n", r.headline())
	for _, system := range r.Systems {
		for _, why := range slices.Sorted(maps.Keys(r.Failures[system])) {
			fmt.Fprintf(&b, "failures of %s: %d× %s\n", system, r.Failures[system][why], why)
		}
	}
	for _, a := range r.Aims {
		fmt.Fprintf(&b, "%-7s %s: %s\n", a.verdict(), a.Aim, a.Found)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printMarkdown writes the tables for the README.
func (r *report) printMarkdown(w io.Writer) error {
	var b strings.Builder
	for i, row := range r.table() {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(&b, "| --- |%s\n", strings.Repeat(" ---: |", len(row)-1))
		}
	}
	fmt.Fprintf(&b, "\n%s\n", r.headline())
	if len(r.Aims) > 0 {
		b.WriteString("\n| aim | found | |\n| --- | --- | --- |\n")
	}
	for _, a := range r.Aims {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", a.Aim, a.Found, a.verdict())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// number writes a figure with thousands set apart.
func number(value float64, decimals int) string {
	text := fmt.Sprintf("%.*f", decimals, value)
	sign, digits := "", text
	if strings.HasPrefix(text, "-") {
		sign, digits = "-", text[1:]
	}
	whole, fraction, dotted := strings.Cut(digits, ".")
	for at := len(whole) - 3; at > 0; at -= 3 {
		whole = whole[:at] + "," + whole[at:]
	}
	if dotted {
		whole += "." + fraction
	}
	return sign + whole
}
