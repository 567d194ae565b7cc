package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"sluice/internal/testkit"
)

// The systems under test. Every other one's figures stand beside those of direct,
// the same calls with nothing in between, and of the floor.
const (
	systemDirect   = "direct"
	systemFloor    = "reverseproxy"
	systemSluice   = "sluice"
	systemExternal = "sluice-external"
	systemGoverned = "sluice-governed" // embedded, with limits, budgets, prices, and a cache for other requests
	systemCached   = "sluice-cached"   // the same, and every answer is looked for and kept
)

func allSystems() []string {
	return []string{systemDirect, systemFloor, systemSluice, systemGoverned, systemCached, systemExternal}
}

// bench is what a run's systems need: where to write, Sluice's binary, the key.
type bench struct {
	dir      string // removed after the run
	sluice   string
	key      string
	upstream string   // the address that answers at once
	thinking string   // and the one that thinks first
	members  []string // and those of the fleet
	started  int
}

// running is a started system.
type running struct {
	name    string
	address string
	pids    []int  // whose CPU time and memory are the system's; none for direct
	ledger  string // path of the database that the fleet's ingress writes to
	end     []func() error
}

// stop ends the system's processes, the last started first.
func (r *running) stop() error {
	var errs []error
	for _, end := range slices.Backward(r.end) {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

// place is where a system stands.
type place struct {
	targets     []string // the upstreams' addresses: one, or a fleet's
	concurrency int      // how many calls Sluice may have there at once
	boundProxy  bool     // whether that holds for the proxy too, which has no bound otherwise
}

// start starts a system at its place.
func (b *bench) start(ctx context.Context, name string, at place) (*running, error) {
	b.started++
	dir := filepath.Join(b.dir, fmt.Sprintf("%02d-%s", b.started, name))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	r := &running{name: name, address: at.targets[0]}
	var err error
	switch name {
	case systemDirect:
	case systemFloor:
		err = r.startProxy(ctx, dir, at)
	case systemSluice:
		err = r.startSluice(ctx, b, dir, at, "", "")
	case systemGoverned:
		err = r.startSluice(ctx, b, dir, at, "", governance+cacheOthers)
	case systemCached:
		err = r.startSluice(ctx, b, dir, at, "", governance+cacheAll)
	case systemExternal:
		if len(at.targets) > 1 {
			err = r.startFleet(ctx, b, dir, at.targets)
		} else {
			err = r.startExternal(ctx, b, dir, at)
		}
	default:
		err = fmt.Errorf("unknown system %q", name)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), r.stop())
	}
	return r, nil
}

func (r *running) startProxy(ctx context.Context, dir string, at place) error {
	most := 0
	if at.boundProxy {
		most = at.concurrency
	}
	p, addresses, err := startChild(ctx, dir, "proxy", append([]string{"proxy", strconv.Itoa(most)}, at.targets...)...)
	if err != nil {
		return err
	}
	r.own(p)
	r.address = addresses[0]
	return nil
}

func (r *running) startExternal(ctx context.Context, b *bench, dir string, at place) error {
	server, err := testkit.NewNATSServer(ctx, dir)
	if err != nil {
		return err
	}
	r.end = append(r.end, server.Stop)
	r.pids = append(r.pids, server.PID())
	return r.startSluice(ctx, b, dir, at, server.URL(), "")
}

func (r *running) startSluice(ctx context.Context, b *bench, dir string, at place, queue, more string) error {
	var err error
	r.address, err = r.startRole(ctx, b, dir, "sluice", func(address string) string {
		return sluiceConfig(address, filepath.Join(dir, "data"), queue, b.key, at) + more
	}, "serve")
	return err
}

// startRole starts one of Sluice's roles, waits until it is ready, and returns its
// address.
func (r *running) startRole(
	ctx context.Context, b *bench, dir, name string, config func(address string) string, args ...string,
) (string, error) {
	address, err := freeAddress()
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, name+".yaml")
	if err := os.WriteFile(file, []byte(config(address)), 0o600); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	p, err := startProcess(dir, name, nil, nil, b.sluice, append(args, "--config", file)...)
	if err != nil {
		return "", err
	}
	r.own(p)
	return address, p.waitReady(ctx, "http://"+address+"/readyz")
}

func (r *running) own(p *process) {
	r.end = append(r.end, p.stop)
	r.pids = append(r.pids, p.cmd.Process.Pid)
}

// sluiceConfig is what an owner would write, and no more: keys, ledger, metrics and
// logs are on.
func sluiceConfig(address, data, queue, key string, at place) string {
	return fmt.Sprintf(`server: {address: %q}
data_dir: %q
queue: {url: %q}
auth: {keys: [{name: bench, key: %q}]}
providers:
  up:
    type: openai
    base_url: "http://%s/v1"
    api_key: x
    models: [bench]
    concurrency: %d
`, address, data, queue, key, at.targets[0], at.concurrency)
}

// governance is what an owner adds who governs a team's use: every kind of limit for the
// key, its tenant and the model, none of which is reached.
const governance = `    prices: [{models: [bench], input: 2.5, cached_input: 1.25, output: 10}]
rate_limit:
  key:
    requests_per_minute: 1000000
    tokens_per_minute: 10000000000
    concurrent: 100000
    queued: 100000
    budget: {day: 10000000, week: 50000000, month: 100000000}
  tenant:
    requests_per_minute: 10000000
    tokens_per_minute: 100000000000
    budget: {day: 20000000, month: 200000000}
  models: [{models: ["*"], requests_per_minute: 10000000, concurrent: 100000}]
`

// What the cache is on for. The calls that are measured differ from each other, so that a
// cache for all of them has work with each and never a hit.
const (
	cacheOthers = `cache:
  rules: [{name: embeddings, when: {all: [{endpoints: [embeddings]}]}, ttl: 1h}]
`
	cacheAll = `cache:
  rules: [{name: all, ttl: 1h}]
`
)

func (p *process) waitReady(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		select {
		case <-p.exited:
			return p.failed("ended by itself")
		case <-ctx.Done():
			return errors.Join(p.failed("was not ready"), ctx.Err())
		case <-poll.C:
		}
		response, err := client.Get(url)
		if err != nil {
			continue
		}
		_ = response.Body.Close()
		if response.StatusCode == http.StatusOK {
			return nil
		}
	}
}

func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return listener.Addr().String(), listener.Close()
}

// buildSluice builds the binary from the working tree.
func buildSluice(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "sluice-binary")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "sluice/cmd/sluice").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build sluice: %w\n%s", err, out)
	}
	return binary, nil
}
