package main

import (
	"bytes"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// run makes a report in which every compared figure of the floor is 10 times scale
// and of Sluice 12 times; what stands for itself is at its best.
func runOf(scale float64, change func(sluice figures)) *report {
	r := &report{Systems: []string{systemFloor, systemSluice}, Figures: map[string]figures{
		systemFloor: {}, systemSluice: {},
	}}
	for _, m := range metrics() {
		switch {
		case m.name == "goodput_share":
			r.Figures[systemSluice][m.name] = 97
		case m.compared == byFloor:
			r.Figures[systemFloor][m.name], r.Figures[systemSluice][m.name] = 10*scale, 12*scale
		case m.compared == asIs:
			r.Figures[systemSluice][m.name] = 0
		}
	}
	if change != nil {
		change(r.Figures[systemSluice])
	}
	return r
}

func TestCompare(t *testing.T) {
	t.Parallel()
	baseline := runOf(1, nil)
	for name, c := range map[string]struct {
		run   *report
		slack float64
		worse []string
	}{
		"the same":                    {run: runOf(1, nil)},
		"a machine half as fast":      {run: runOf(2, nil)},
		"a little slower":             {run: runOf(1, func(f figures) { f["added_p50_200"] = 14 })},
		"much slower":                 {run: runOf(1, func(f figures) { f["added_p50_200"] = 17 }), worse: []string{"added p50 at 200/s, ms"}},
		"much slower, but tolerated":  {run: runOf(1, func(f figures) { f["added_p50_200"] = 17 }), slack: 2},
		"much faster":                 {run: runOf(1, func(f figures) { f["added_p50_200"] = 1 })},
		"fewer requests a second":     {run: runOf(1, func(f figures) { f["most"] = 9 }), worse: []string{"most requests/s, 64 connections"}},
		"more requests a second":      {run: runOf(1, func(f figures) { f["most"] = 30 })},
		"a single failure":            {run: runOf(1, func(f figures) { f["failures"] = 1 }), worse: []string{"failures, all scenarios"}},
		"goodput collapsed":           {run: runOf(1, func(f figures) { f["goodput_share"] = 85 }), worse: []string{"goodput as a share of it, %"}},
		"noise below a figure's size": {run: runOf(1, func(f figures) { f["refused_p50"] = 1.9 })},
		"slow refusals":               {run: runOf(1, func(f figures) { f["refused_p50"] = 5 }), worse: []string{"latency p50 of a 429, ms"}},
		"a figure gone":               {run: runOf(1, func(f figures) { delete(f, "cpu") }), worse: []string{"CPU per 1,000 requests at 1,000/s, ms"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var worse []string
			for _, f := range compare(baseline, c.run, max(c.slack, 1)) {
				require.Equal(t, systemSluice, f.system)
				if f.worse {
					worse = append(worse, f.label)
				}
			}
			require.Equal(t, c.worse, worse)
		})
	}
}

func TestCompareCommand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	baseline, good, bad := filepath.Join(dir, "baseline"), filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	require.NoError(t, runOf(1, nil).write(baseline))
	require.NoError(t, runOf(3, nil).write(good))
	require.NoError(t, runOf(1, func(f figures) { f["most"] = 1 }).write(bad))
	var out bytes.Buffer
	require.NoError(t, command(t.Context(), []string{"compare", "-baseline", baseline, good}, nil, &out, io.Discard))
	require.NotContains(t, out.String(), "WORSE")
	require.ErrorIs(t, command(t.Context(), []string{"compare", "-baseline", baseline, bad}, nil, &out, io.Discard), errWorse)
	require.Contains(t, out.String(), "WORSE")

	apart := runOf(1, nil)
	apart.Systems = []string{systemFloor}
	require.NoError(t, apart.write(good))
	require.ErrorContains(t, command(t.Context(), []string{"compare", "-baseline", baseline, good}, nil, &out, io.Discard), "no figure in common")
}

func TestJudge(t *testing.T) {
	t.Parallel()
	all := map[string]figures{
		systemFloor:  {"added_p50_200": 0.3, "most": 8000},
		systemSluice: {"added_p50_200": 0.44, "most": 7900, "stream_memory": 39, "failures": 1},
	}
	verdicts := map[string]bool{}
	for _, r := range judge(all) {
		verdicts[r.Aim] = r.Met
	}
	require.Equal(t, map[string]bool{
		"added p50 at 200/s at most 1.5 times the floor's": true,
		"most requests/s no less than the floor's":         false,
		"memory per open stream under 40 KB":               true,
		"no request failed, hung or lost a token":          false,
	}, verdicts)
}

func TestEveryAimIsAboutAMetric(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, m := range metrics() {
		require.False(t, names[m.name], "%s stands twice", m.name)
		names[m.name] = true
	}
	for _, a := range aims() {
		require.True(t, names[a.metric], a.metric)
	}
}

func TestRoundsBecomeFigures(t *testing.T) {
	t.Parallel()
	var rounds []map[string]figures
	for _, p50 := range []float64{0.9, 0.5, 0.6} {
		round := map[string]figures{systemDirect: {"p50_200": 0.1}, systemFloor: {"p50_200": p50}}
		addOverDirect(round)
		rounds = append(rounds, round)
	}
	require.Equal(t, figures{"p50_200": 0.6, "added_p50_200": 0.5}, medians(rounds, systemFloor))
	require.Equal(t, figures{"p50_200": 0.1}, medians(rounds, systemDirect))
}

func TestReportShowsRatiosAndAims(t *testing.T) {
	t.Parallel()
	r := runOf(100, nil)
	r.Rounds = make([]map[string]figures, 3)
	r.Failures = map[string]map[string]int{systemSluice: {"status 502": 2}}
	r.Aims = []aimResult{{Aim: "be quick", Found: "slow"}}
	var text, markdown bytes.Buffer
	require.NoError(t, r.show(&text, false))
	require.NoError(t, r.show(&markdown, true))
	require.Contains(t, text.String(), "1,200 (×1.20)")
	require.Contains(t, text.String(), "failures of sluice: 2× status 502")
	require.Contains(t, text.String(), "MISSED")
	require.NotContains(t, text.String(), "latency p50 at 200/s", "nobody measured it")
	require.True(t, strings.HasPrefix(markdown.String(), "|  | reverseproxy | sluice |\n| --- | ---: | ---: |\n"))
	require.Contains(t, markdown.String(), "| be quick | slow | MISSED |")
}

func TestRatiosIgnoreNoise(t *testing.T) {
	t.Parallel()
	m := metric{grain: 0.1}
	require.InDelta(t, 2, m.ratio(0.8, 0.4), 1e-9)
	require.InDelta(t, 1, m.ratio(0.01, -0.3), 1e-9, "both are noise")
	require.InDelta(t, 0.25, m.ratio(-5, 0.4), 1e-9)
	require.InDelta(t, 5, m.ratio(0.5, 0.001), 1e-9)
}

func TestNumber(t *testing.T) {
	t.Parallel()
	for want, value := range map[string]float64{"0.00": 0.001, "999.00": 999, "1,234.50": 1234.5, "-1,000,000.00": -1e6} {
		require.Equal(t, want, number(value, 2))
	}
}

func TestReadProc(t *testing.T) {
	t.Parallel()
	cpu, err := parseCPU([]byte("42 (a ) b) S 1 42 42 0 -1 4194560 120 0 0 0 150 25 0 0 20 0 9 0 100\n"))
	require.NoError(t, err)
	require.Equal(t, 1750*time.Millisecond, cpu)
	_, err = parseCPU([]byte("42 (short) S 1"))
	require.Error(t, err)
	status := []byte("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
	require.InDelta(t, 1<<20, statusBytes(status, "VmRSS:"), 0)
	require.InDelta(t, 2<<20, statusBytes(status, "VmHWM:"), 0)
	require.Zero(t, statusBytes(status, "VmSwap:"))
}

func TestChoose(t *testing.T) {
	t.Parallel()
	got, err := choose("system", "sluice,direct", allSystems())
	require.NoError(t, err)
	require.Equal(t, []string{systemDirect, systemSluice}, got)
	_, err = choose("system", "nginx", allSystems())
	require.ErrorContains(t, err, `unknown system "nginx"`)
}

func TestRequestsOfARunMayDiffer(t *testing.T) {
	t.Parallel()
	for _, distinct := range []bool{false, true} {
		spec := loadSpec{Mode: "closed", Address: "x", Distinct: distinct}
		l := &load{loadSpec: spec, request: renderRequest(spec)}
		first, second := l.next(), l.next()
		require.Len(t, second, len(first))
		require.Equal(t, distinct, string(first) != string(second))
		_, body, _ := strings.Cut(string(second), "\r\n\r\n")
		require.True(t, json.Valid([]byte(body)), body)
	}
}

func TestAnAimMayStandBesideAnotherSystem(t *testing.T) {
	t.Parallel()
	results := judge(map[string]figures{
		systemFloor: {"p50_200": 0.1}, systemSluice: {"p50_200": 1}, systemGoverned: {"p50_200": 1.06},
	})
	require.Len(t, results, 1)
	require.False(t, results[0].Met)
	require.Contains(t, results[0].Found, "×1.06")
}
