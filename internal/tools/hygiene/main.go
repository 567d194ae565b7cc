// Command hygiene reads every file of the repository and reports what must not be
// committed: a path or a package registry of the machine that it was written on,
// and a relative link in the documentation that leads nowhere.
//
// It asks git for the files, new ones that are not ignored included. It does not
// change anything and fetches nothing.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "hygiene:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("hygiene", flag.ContinueOnError)
	root := flags.String("root", ".", "the repository")
	if err := flags.Parse(args); err != nil {
		return err
	}
	names, err := listFiles(ctx, *root)
	if err != nil {
		return err
	}
	tree, err := readTree(*root, names)
	if err != nil {
		return err
	}
	found := tree.findings()
	for _, line := range found {
		fmt.Fprintln(out, line)
	}
	if len(found) > 0 {
		return fmt.Errorf("%d findings in %d files", len(found), len(names))
	}
	return nil
}

// listFiles returns the slash-separated names of all files that are committed or
// could be. A checkout that belongs to another user, as in a container, is read too.
func listFiles(ctx context.Context, root string) ([]string, error) {
	git := exec.CommandContext(ctx, "git", "-c", "safe.directory=*", "-C", root,
		"ls-files", "-z", "--cached", "--others", "--exclude-standard")
	var complaint bytes.Buffer
	git.Stderr = &complaint
	out, err := git.Output()
	if err != nil {
		return nil, fmt.Errorf("list files: %w: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	names := strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 })
	if len(names) == 0 {
		return nil, fmt.Errorf("list files: %s holds none", root)
	}
	return names, nil
}

// readTree reads the named files. One that was deleted and not yet committed so is
// left out; a symbolic link counts as a name without content.
func readTree(root string, names []string) (tree, error) {
	files := make(tree, len(names))
	for _, name := range names {
		file := filepath.Join(root, filepath.FromSlash(name))
		info, err := os.Lstat(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", name, err)
		}
		if !info.Mode().IsRegular() {
			files[name] = ""
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		files[name] = string(content)
	}
	return files, nil
}
