package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sluice/internal/testkit"
)

// coverVariable names a directory in which the binary reports what it covered.
const coverVariable = "SLUICE_COVER_DIR"

// binary is the path of the program under test. TestMain sets it before any test.
var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sluice-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make directory for the binary:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary = filepath.Join(dir, "sluice")
	if err := build(binary); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return testkit.Run(m)
}

func build(path string) error {
	args := []string{"build", "-buildvcs=false", "-ldflags", "-X main.version=v0.0.0-e2e", "-o", path}
	if os.Getenv(coverVariable) != "" {
		args = append(args, "-cover", "-coverpkg=sluice/...")
	}
	out, err := exec.Command("go", append(args, "sluice/cmd/sluice")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("build sluice: %w\n%s", err, out)
	}
	return nil
}
