package main

import (
	"fmt"
	"io"
	"slices"
)

// finding is one figure of a run beside the baseline's, both divided by their own
// run's floor where the metric says so.
type finding struct {
	system, label string
	before, now   float64
	worse         bool
	missing       bool // the run lacks what the baseline has
}

// compare holds a run against the baseline. Systems that one of the two left out
// are not looked at; slack widens every tolerance.
func compare(baseline, run *report, slack float64) []finding {
	var findings []finding
	for _, system := range baseline.Systems {
		if system == systemDirect || system == systemFloor || !slices.Contains(run.Systems, system) {
			continue
		}
		for _, m := range metrics() {
			before, measured := basisValue(baseline, system, m)
			if !measured {
				continue
			}
			f := finding{system: system, label: m.label, before: before}
			now, present := basisValue(run, system, m)
			f.now, f.missing = now, !present
			f.worse = f.missing || m.worse(before, now, slack)
			findings = append(findings, f)
		}
	}
	return findings
}

func basisValue(r *report, system string, m metric) (float64, bool) {
	value, measured := r.Figures[system][m.name]
	switch m.compared {
	case asIs:
		return value, measured
	case byFloor:
		by, known := r.Figures[systemFloor][m.name]
		return m.ratio(value, by), measured && known
	default:
		return 0, false
	}
}

// worse says whether now is beyond the tolerance on the bad side of before.
func (m metric) worse(before, now, slack float64) bool {
	if m.compared == asIs {
		if m.tolerance == 0 {
			return now > before
		}
		before, now = max(before, m.grain), max(now, m.grain)
	}
	allowed := 1 + m.tolerance*slack
	if m.higher {
		return now < before/allowed
	}
	return now > before*allowed
}

// printFindings writes the comparison and returns how many figures are worse.
func printFindings(w io.Writer, findings []finding) (int, error) {
	worse := 0
	for _, f := range findings {
		verdict := "ok"
		if f.worse {
			verdict = "WORSE"
			worse++
		}
		now := fmt.Sprintf("%.2f", f.now)
		if f.missing {
			now = "missing"
		}
		if _, err := fmt.Fprintf(w, "%-5s  %-16s %-42s %8.2f → %s\n", verdict, f.system, f.label, f.before, now); err != nil {
			return 0, err
		}
	}
	return worse, nil
}
