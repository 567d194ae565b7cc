package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestForbidden(t *testing.T) {
	t.Parallel()
	// The samples are put together here, so that this file passes its own check.
	tests := []struct {
		name, line string
		bad        bool
	}{
		{"a machine's path", "cd /wo" + "rk/main", true},
		{"in quotes", `open("/fa` + `rm/x")`, true},
		{"a file URL", "file:///ro" + "ot/x", true},
		{"part of a longer path", "/srv/wo" + "rk/x", false},
		{"part of a URL", "https://example.com/wo" + "rk/x", false},
		{"a folder that only begins so", "/workspace/x", false},
		{"a module proxy", "https://proxy." + "golang.org", true},
		{"a proxy setting", "ENV GOPROXY=" + "https://mirror.example", true},
		{"a package registry", "https://registry." + "npmjs.org/x", true},
		{"a Debian mirror", "http://deb." + "debian.org/debian", true},
		{"a container image", "FROM gcr.io/distroless/static", false},
		{"a module path", "golang.org/x/sync", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			found := tree{"a.txt": "first\n" + test.line + "\n"}.findings()
			if bad := len(found) > 0; bad != test.bad {
				t.Fatalf("%q: found %q", test.line, found)
			}
			if test.bad && !strings.HasPrefix(found[0], "a.txt:2: ") {
				t.Fatalf("found at the wrong place: %q", found)
			}
		})
	}
}

func TestBinaryFilesAreLeftAlone(t *testing.T) {
	t.Parallel()
	if found := (tree{"a.bin": "\x00 /wo" + "rk/x"}).findings(); len(found) > 0 {
		t.Fatalf("found %q", found)
	}
}

func TestLinks(t *testing.T) {
	t.Parallel()
	files := tree{
		"README.md":       "# Sluice\n## Two commands, one `binary`!\n## Same\n## Same\n```\n# not a heading\n```\n",
		"docs/guide.md":   "",
		"deploy/x/y.yaml": "",
	}
	tests := []struct {
		link string
		ok   bool
	}{
		{"[a](guide.md)", true},
		{"[a](../README.md)", true},
		{"[a](/README.md \"title\")", true},
		{"[a](../deploy/)", true},
		{"[a](..)", true},
		{"[a](https://example.com/none)", true},
		{"[a](mailto:a@example.com)", true},
		{"![a](../logo.png)", false},
		{"[a](none.md)", false},
		{"[a](../deploy/z)", false},
		{"[a](../../outside.md)", false},
		{"[a]: none.md", false},
		{"[a](%zz)", false},
		{"`[a](none.md)`", true},
		{"```\n[a](none.md)\n```", true},
		{"```\ncode\n```\n[a](none.md)", false},
		{"[a](../README.md#two-commands-one-binary)", true},
		{"[a](../README.md#same-1)", true},
		{"[a](../README.md#same-2)", false},
		{"[a](../README.md#not-a-heading)", false},
		{"[a](#none)", false},
		{"[a](../deploy/x#none)", false},
		{"[a](../deploy/x/y.yaml#L1)", true},
	}
	for _, test := range tests {
		t.Run(test.link, func(t *testing.T) {
			t.Parallel()
			if found := files.brokenLinks("docs/page.md", test.link); (len(found) == 0) != test.ok {
				t.Fatalf("found %q", found)
			}
		})
	}
}

func TestRunReadsTheRepository(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "git", "init", "-q", root).CombinedOutput(); err != nil {
		t.Fatalf("git init: %v: %s", err, out)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func() ([]string, error) {
		var out strings.Builder
		err := run(t.Context(), []string{"-root", root}, &out)
		return strings.Split(strings.TrimSpace(out.String()), "\n"), err
	}

	if _, err := check(); err == nil {
		t.Fatal("an empty repository passed")
	}
	write(".gitignore", "ignored\n")
	write("ignored", "/wo"+"rk/x")
	write("README.md", "[a](ignored)\n")
	if found, err := check(); err == nil || !slices.Equal(found, []string{`README.md:1: link leads nowhere: "ignored"`}) {
		t.Fatalf("got %q, %v", found, err)
	}
	write("README.md", "[a](.gitignore)\n")
	if found, err := check(); err != nil {
		t.Fatalf("refused a clean repository: %q, %v", found, err)
	}
}
