package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const profile = `mode: atomic
sluice/ingress/a.go:1.1,2.2 3 1
sluice/ingress/a.go:3.1,4.2 1 0
sluice/worker/b.go:1.1,2.2 4 0
sluice/internal/testkit/c.go:1.1,2.2 100 0
sluice/internal/testkitchen/d.go:1.1,2.2 2 9
`

func gate(t *testing.T, text string, args ...string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "profile.txt")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	err := run(append(args, file), &out)
	return out.String(), err
}

func TestGate(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, profile string
		args          []string
		wantErr       string
	}{
		{"exactly the minimum passes", profile, []string{"-min", "50", "-exclude", "sluice/internal/testkit"}, ""},
		{"below the minimum fails", profile, []string{"-min", "50.1", "-exclude", "sluice/internal/testkit"}, "50.0% of statements ran"},
		{"nothing is left out unasked", profile, []string{"-min", "50"}, "4.5% of statements ran"},
		{"a block counts once, as covered", profile + "sluice/worker/b.go:1.1,2.2 4 7\n", []string{"-min", "90", "-exclude", "sluice/internal/testkit"}, ""},
		{"an empty profile fails", "mode: atomic\n", nil, "no statements"},
		{"a pattern leaves out all below it", profile, []string{"-min", "75", "-exclude", "*/internal,sluice/work*"}, ""},
		{"a pattern that is none fails", profile, []string{"-exclude", "[a"}, "read pattern"},
		{"all left out fails", profile, []string{"-exclude", "sluice"}, "no statements"},
		{"a torn line fails", "mode: atomic\nsluice/a.go:1.1,2.2 3\n", nil, "line 2"},
		{"a line without a file fails", "1.1,2.2 3 1\n", nil, "names no file"},
		{"a count that is none fails", "sluice/a.go:1.1,2.2 x 1\n", nil, "count statements"},
		{"hits that are none fail", "sluice/a.go:1.1,2.2 1 x\n", nil, "count hits"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			out, err := gate(t, test.profile, test.args...)
			switch {
			case test.wantErr == "" && err != nil:
				t.Fatalf("refused: %v\n%s", err, out)
			case test.wantErr != "" && (err == nil || !strings.Contains(err.Error(), test.wantErr)):
				t.Fatalf("got error %v, want one with %q\n%s", err, test.wantErr, out)
			}
		})
	}
}

func TestReportNamesPackages(t *testing.T) {
	t.Parallel()
	out, err := gate(t, profile, "-min", "1", "-exclude", "sluice/internal/testkit,sluice/none")
	if err != nil {
		t.Fatal(err)
	}
	want := `  75.0%      4 statements  sluice/ingress
 100.0%      2 statements  sluice/internal/testkitchen
   0.0%      4 statements  sluice/worker
  50.0%     10 statements  in all, at least 1.0% wanted
`
	if out != want {
		t.Fatalf("got\n%swant\n%s", out, want)
	}
}

func TestMissingProfileFails(t *testing.T) {
	t.Parallel()
	if err := run([]string{filepath.Join(t.TempDir(), "none")}, &strings.Builder{}); err == nil {
		t.Fatal("passed without a profile")
	}
}

func TestProfilesAddUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	for file, hits := range map[string]string{first: "sluice/a.go:1.1,2.2 1 1\nsluice/a.go:2.2,3.3 1 0\n", second: "sluice/a.go:1.1,2.2 1 0\nsluice/a.go:2.2,3.3 1 1\n"} {
		if err := os.WriteFile(file, []byte(hits), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := run([]string{"-min", "100", first, second}, &strings.Builder{}); err != nil {
		t.Fatal(err)
	}
}
