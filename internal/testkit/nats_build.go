package testkit

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

const natsModule = "github.com/nats-io/nats-server/v2"

// buildNATSServer returns the path of a nats-server built from the version in
// go.mod. The binary stays in the user's cache directory, so that only the first
// run on a machine pays for it; its name tells versions apart.
func buildNATSServer(ctx context.Context) (string, error) {
	version, err := goOutput(ctx, "list", "-m", "-f", "{{.Version}}", natsModule)
	if err != nil {
		return "", fmt.Errorf("find the version of nats-server: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir() // a user without a home still runs tests
	}
	cache = filepath.Join(cache, "sluice-testkit")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", fmt.Errorf("make cache directory: %w", err)
	}
	binary := filepath.Join(cache, fmt.Sprintf("nats-server-%s-%s-%s-%s",
		version, runtime.Version(), runtime.GOOS, runtime.GOARCH))
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	// Several test processes may build at once: each into a directory of its own, and
	// the rename shows the others a whole binary or none.
	work, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return "", fmt.Errorf("make build directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	built := filepath.Join(work, "nats-server")
	if _, err := goOutput(ctx, "build", "-o", built, natsModule); err != nil {
		return "", fmt.Errorf("build nats-server: %w", err)
	}
	if err := os.Rename(built, binary); err != nil {
		return "", fmt.Errorf("keep nats-server: %w", err)
	}
	return binary, nil
}

func goOutput(ctx context.Context, args ...string) (string, error) {
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("run go %s: %w\n%s", args[0], err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}
