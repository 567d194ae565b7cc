package testkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	installTimeout = 8 * time.Minute

	// lockTimeout bounds the wait for another installation to end, and lockPoll is how
	// often to look.
	lockTimeout = 2 * time.Minute
	lockPoll    = 3 * time.Second
)

// errNoPostgres is the one line that says what to do. It names no other server to
// use instead: tests that stop and start one would still fail.
var errNoPostgres = errors.New("found no usable initdb and postgres: install the Postgres server")

// postgresPrograms are a server's programs and the account that they run as.
type postgresPrograms struct {
	initdb   string
	postgres string
	account  account
}

// account is who a server runs as. Postgres refuses to run as root, so then it is
// another one; otherwise it is whoever runs the tests.
type account struct {
	credential *syscall.Credential // nil: the same account
}

// serverAccount returns the account to run a server as.
func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil {
			return account{&syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
		}
	}
	return account{}, errors.New("running as root, and there is neither a user postgres nor a user nobody")
}

// makeTempDir makes a folder that the account owns, in a place that it can reach:
// root's own temporary folder may be closed to others.
func (a account) makeTempDir() (string, error) {
	var failures []error
	for _, base := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		if a.credential != nil && !openToAll(base) {
			failures = append(failures, fmt.Errorf("%s is closed to other users", base))
			continue
		}
		dir, err := os.MkdirTemp(base, "sluice-postgres-")
		if err != nil {
			failures = append(failures, err)
			continue
		}
		if a.credential != nil {
			err = os.Chown(dir, int(a.credential.Uid), int(a.credential.Gid))
		}
		if err != nil {
			return "", errors.Join(err, os.Remove(dir))
		}
		return dir, nil
	}
	return "", errors.Join(failures...)
}

// openToAll reports whether every user may pass through dir and all above it.
func openToAll(dir string) bool {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}

// findOrInstallPostgres returns a server's programs. Several test processes start at
// once, so only one installs, and the others then find what it installed.
func findOrInstallPostgres() (postgresPrograms, error) {
	account, err := serverAccount()
	if err != nil {
		return postgresPrograms{}, err
	}
	if programs, ok := findPostgres(account); ok {
		return programs, nil
	}
	install := installCommands()
	if len(install) == 0 {
		return postgresPrograms{}, errNoPostgres
	}
	unlock, err := lockInstall()
	if err != nil {
		return postgresPrograms{}, err
	}
	defer unlock()
	if programs, ok := findPostgres(account); ok {
		return programs, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), installTimeout)
	defer cancel()
	for _, args := range install {
		if err := runInstall(ctx, args, lockTimeout, lockPoll); err != nil {
			return postgresPrograms{}, fmt.Errorf("%w (%w)", errNoPostgres, err)
		}
	}
	// The package may have brought the user postgres with it.
	if account, err = serverAccount(); err != nil {
		return postgresPrograms{}, err
	}
	if programs, ok := findPostgres(account); ok {
		return programs, nil
	}
	return postgresPrograms{}, errNoPostgres
}

// runInstall runs one command. A new machine may be at its daily update, and apt-get
// waits for no lock but dpkg's, so the wait for the others is here.
func runInstall(ctx context.Context, args []string, timeout, poll time.Duration) error {
	for deadline := time.Now().Add(timeout); ; {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
		out, err := cmd.CombinedOutput()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil, time.Now().After(deadline), !bytes.Contains(out, []byte("Could not get lock")):
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, lastLines(out))
		}
		select {
		case <-ctx.Done():
		case <-time.After(poll):
		}
	}
}

// findPostgres looks for a folder with both programs that the account can run.
func findPostgres(a account) (postgresPrograms, bool) {
	for _, dir := range programFolders() {
		p := postgresPrograms{
			initdb:   filepath.Join(dir, "initdb"),
			postgres: filepath.Join(dir, "postgres"),
			account:  a,
		}
		if p.runs(p.initdb) && p.runs(p.postgres) {
			return p, true
		}
	}
	return postgresPrograms{}, false
}

func (p postgresPrograms) runs(program string) bool {
	if _, err := os.Stat(program); err != nil {
		return false
	}
	cmd := exec.Command(program, "--version")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.account.credential}
	return cmd.Run() == nil
}

// programFolders returns the places where a server's programs may be, those that
// the user chose first, then newer versions before older ones.
func programFolders() []string {
	var dirs []string
	if program, err := exec.LookPath("postgres"); err == nil {
		if program, err = filepath.EvalSymlinks(program); err == nil {
			dirs = append(dirs, filepath.Dir(program)) // initdb looks for postgres beside itself
		}
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",
		"/usr/pgsql-*/bin",
		"/opt/homebrew/opt/postgresql*/bin",
		"/usr/local/opt/postgresql*/bin",
		"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
		"/usr/local/pgsql/bin",
		"/usr/libexec/postgresql*",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			continue // cannot be: the patterns are well formed
		}
		slices.Reverse(found)
		dirs = append(dirs, found...)
	}
	return dirs
}

// installCommands returns what installs a server here, or nothing where that takes
// rights or tools that are not there.
func installCommands() [][]string {
	has := func(program string) bool {
		_, err := exec.LookPath(program)
		return err == nil
	}
	root := os.Geteuid() == 0
	switch {
	case root && has("apt-get"):
		return [][]string{
			{"apt-get", "update", "-q"},
			{
				"apt-get", "install", "-q", "-y", "--no-install-recommends",
				"-o", "DPkg::Lock::Timeout=120", "postgresql",
			},
		}
	case !root && has("brew"):
		return [][]string{{"brew", "install", "--quiet", "postgresql@17"}}
	}
	return nil
}

// lockInstall waits for its turn among the test processes of this user.
func lockInstall() (unlock func(), err error) {
	path := filepath.Join(os.TempDir(), fmt.Sprintf("sluice-testkit-%d.lock", os.Geteuid()))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open install lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("take install lock: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil // which gives the lock back
}
