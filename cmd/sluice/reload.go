package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"

	"sluice/ingress"
	"sluice/internal/adminapi"
	"sluice/internal/config"
	"sluice/internal/observability"
)

// completion fills in what a configuration leaves to the role.
type completion func(ctx context.Context, cfg *config.Config)

// reloader puts a changed configuration in force while the process runs: it reads,
// validates and builds all of it first, and only then has each role take it over as a
// whole. A file that is no good changes nothing.
type reloader struct {
	options  config.Options // as at the start: the environment is the start's, too
	complete completion     // nil: there is nothing to fill in
	level    *observability.Level
	log      *slog.Logger
	metrics  reloadMetrics
	hups     <-chan os.Signal
	wake     chan string // the file has changed, to the content of that hash; the newest word alone

	ingress *ingress.Ingress // nil: not in this process
	worker  *runningWorker   // nil: not in this process

	turn  sync.Mutex // one reload after the other
	turns int        // reloads so far, of files that were read

	mu     sync.Mutex
	tried  string         // hash of the content last read, whether it is in force or no good, or config.Unreadable
	config *config.Config // in force; never changed
	marks  marks          // of its providers
	state  adminapi.ConfigState
}

func newReloader(loaded *config.Loaded, complete completion, level *observability.Level, hups <-chan os.Signal, log *slog.Logger) *reloader {
	return &reloader{
		options: loaded.Options, complete: complete, level: level, log: log, metrics: newReloadMetrics(), hups: hups, wake: make(chan string, 1),
		tried: loaded.Hash, config: loaded.Config, marks: marksOf(0, nil, loaded.Config),
		state: adminapi.ConfigState{File: loaded.Options.Path, Hash: loaded.Hash, LoadedAt: time.Now(), NeedsRestart: []string{}},
	}
}

// reloadParts are the roles of the process.
type reloadParts struct {
	fx.In
	LC       fx.Lifecycle
	Reloader *reloader
	Registry *prometheus.Registry
	Ingress  *ingress.Ingress `optional:"true"`
	Worker   *runningWorker   `optional:"true"`
}

// watchConfig follows the configuration from when everything runs until the first part is
// stopped.
func watchConfig(p reloadParts) {
	r := p.Reloader
	r.ingress, r.worker = p.Ingress, p.Worker
	r.metrics.register(p.Registry, r.state)
	ctx, cancel := context.WithCancel(context.Background())
	path := r.options.Path
	var loops sync.WaitGroup
	p.LC.Append(fx.StartStopHook(
		func() {
			loops.Go(func() { r.run(ctx) })
			if path != "" {
				loops.Go(func() { config.Watch(ctx, path, r.lastTried, r.changed) })
			}
		},
		func() {
			cancel()
			loops.Wait()
		},
	))
}

// changed has the file read, or read once more if it is being read. The watch alone
// calls it.
func (r *reloader) changed(hash string) {
	select {
	case <-r.wake: // nobody needs what came before
	default:
	}
	r.wake <- hash
}

func (r *reloader) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case hash := <-r.wake:
			r.reloadTo(ctx, hash)
		case <-r.hups:
			if err := r.reload(ctx, asItIs, bySignal); errors.Is(err, ingress.ErrNoConfigFile) {
				r.log.Warn("there is nothing to reload: the process was started without a configuration file")
			}
		}
	}
}

// changingLook is how often a file is looked at that holds something else than what was
// told of it.
const changingLook = 50 * time.Millisecond

// reloadTo puts the content of that hash in force. Whoever writes the file anew at this
// moment is waited for: half of a file, or none of it, might be taken for a good one.
func (r *reloader) reloadTo(ctx context.Context, hash string) {
	for hash != r.lastTried() {
		if err := r.reload(ctx, hash, byFile); !errors.Is(err, errChanging) {
			return // it is logged
		}
		timer := time.NewTimer(changingLook)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case hash = <-r.wake:
			timer.Stop()
		case <-timer.C:
			now, err := config.HashFile(r.options.Path)
			if err != nil {
				now = config.Unreadable
			}
			if now == r.lastTried() {
				return // the change was taken back
			}
		}
	}
}

// lastTried returns the hash of the content that was last read, by whom ever.
func (r *reloader) lastTried() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tried
}

// inForce is a configuration with how it came to be in force.
type inForce struct {
	config *config.Config
	state  adminapi.ConfigState
}

func (r *reloader) inForce() inForce {
	r.mu.Lock()
	defer r.mu.Unlock()
	return inForce{r.config, r.state}
}

// shown returns it as operators see it, secrets masked.
func (f inForce) shown() (state adminapi.ConfigState, err error) {
	state = f.state
	if state.YAML, err = config.Show(f.config); err != nil {
		return state, err
	}
	state.Config, err = config.ShowJSON(f.config)
	return state, err
}

// State implements ingress.ConfigSource.
func (r *reloader) State() (adminapi.ConfigState, error) { return r.inForce().shown() }

// Reload implements ingress.ConfigSource. It returns when the file is in force, or with
// what is wrong with it.
func (r *reloader) Reload(ctx context.Context) (before, after adminapi.ConfigState, err error) {
	was, is, err := r.swap(ctx, asItIs)
	if err != nil {
		return before, after, err
	}
	if before, err = was.shown(); err != nil {
		return before, after, err
	}
	after, err = is.shown()
	return before, after, err
}

// reload puts the file in force without an operator having asked for it, and has the audit
// know what that has changed. Why the file was read and on which machine stand for who.
func (r *reloader) reload(ctx context.Context, hash, why string) error {
	was, is, err := r.swap(ctx, hash)
	if err != nil || r.ingress == nil {
		return err
	}
	before, errBefore := was.shown()
	after, errAfter := is.shown()
	if err := errors.Join(errBefore, errAfter); err != nil {
		r.log.Error("the audit does not know what the configuration has changed", "error", err)
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	r.ingress.AuditReload(context.WithoutCancel(ctx), why+":"+host, before, after) // also while the process ends
	return nil
}

// Why a file is read.
const (
	byFile   = "file"   // it has changed
	bySignal = "signal" // SIGHUP
)

// asItIs stands for the hash of whatever a file holds.
const asItIs = "*"

// errChanging says that a file does not hold what was told of it.
var errChanging = errors.New("file is being changed")

// swap puts the file in force, if it holds the content of that hash, or is to be taken
// as it is. What is told to be unreadable and is so is a fault of the file.
func (r *reloader) swap(ctx context.Context, hash string) (was, is inForce, err error) {
	r.turn.Lock()
	defer r.turn.Unlock()
	was = r.inForce()
	if r.options.Path == "" {
		return was, was, ingress.ErrNoConfigFile
	}
	loaded, err := config.Load(r.options)
	tried := hashOf(loaded, err)
	if hash != asItIs && hash != tried {
		return was, was, errChanging
	}
	var next *built
	if err == nil {
		next, err = r.build(ctx, loaded)
	}
	if err == nil {
		err = r.apply(next)
	}
	if err == nil {
		r.options.Filled = loaded.Options.Filled
	}
	r.note(tried, next, err)
	return was, r.inForce(), err
}

// hashOf returns the hash of what was read, good or not, or says that nothing was. The
// file itself is not asked: it may be another one by now, which nobody has tried.
func hashOf(loaded *config.Loaded, err error) string {
	if loaded != nil {
		return loaded.Hash
	}
	if invalid, ok := errors.AsType[*config.InvalidError](err); ok {
		return invalid.Hash
	}
	return config.Unreadable
}

// built is a configuration that can be put in force.
type built struct {
	config  *config.Config
	hash    string
	waiting []string
	marks   marks
	members []member
}

// build does all that can fail. What is built is nil, or of no use, beside an error.
func (r *reloader) build(ctx context.Context, loaded *config.Loaded) (b *built, err error) {
	if err := r.stillServed(loaded.Config); err != nil {
		return nil, err
	}
	if r.complete != nil {
		r.complete(ctx, loaded.Config)
	}
	b = &built{hash: loaded.Hash}
	b.config, b.waiting = config.Reloaded(r.config, loaded.Config)
	r.turns++
	b.marks = marksOf(r.turns, r.marks, b.config)
	if r.worker != nil {
		b.members, err = workerMembers(b.config, r.names(b.config), b.marks)
	}
	return b, err
}

// names are the providers that the worker of this process serves.
func (r *reloader) names(cfg *config.Config) []string {
	if len(r.options.Providers) > 0 {
		return r.options.Providers
	}
	return slices.Sorted(maps.Keys(cfg.Providers))
}

// stillServed refuses a file without a provider that the worker was started for.
func (r *reloader) stillServed(cfg *config.Config) error {
	invalid := new(config.InvalidError)
	for _, name := range r.options.Providers {
		if _, ok := cfg.Providers[name]; !ok {
			invalid.Faults = append(invalid.Faults, config.Fault{
				At: r.options.Path, Path: "providers." + name, Problem: "is missing, and this worker was started to serve it",
			})
		}
	}
	if len(invalid.Faults) > 0 {
		return invalid
	}
	return nil
}

// apply has the roles take the settings over, each at once: the worker first, so that a
// provider that is new is served before the first request is sent there.
func (r *reloader) apply(b *built) error {
	if r.worker != nil {
		if err := r.worker.Apply(b.members); err != nil {
			return errors.Join(err, closeAdapters(b.members))
		}
	}
	if r.ingress != nil {
		r.ingress.Apply(ingressSettings(b.config))
	}
	if err := r.level.SetName(b.config.Observability.LogLevel); err != nil {
		return fmt.Errorf("change log level: %w", err) // the configuration was validated: there is no other one
	}
	return nil
}

// note tells how a reload went, in the log, in the metrics, and to whoever asks.
func (r *reloader) note(tried string, b *built, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	faults := faultsOf(r.options.Path, err)
	r.tried = tried
	r.state.LastReload = &adminapi.ConfigReload{At: now, OK: err == nil, Faults: shownFaults(faults)}
	if err != nil {
		r.metrics.failed()
		for _, f := range faults {
			r.log.Error("configuration is not reloaded; what was in force stays", "at", f.At, "setting", f.Path, "problem", f.Problem)
		}
		return
	}
	if b.hash != r.state.Hash {
		r.state.Hash, r.state.LoadedAt = b.hash, now
	}
	r.config, r.marks, r.state.NeedsRestart = b.config, b.marks, append([]string{}, b.waiting...)
	r.metrics.succeeded(r.state, now)
	r.log.Info("configuration is reloaded", "file", r.state.File, "hash", r.state.Hash)
	for _, setting := range b.waiting {
		r.log.Warn("a change of the configuration needs a restart", "setting", setting)
	}
}

// faultsOf returns what is wrong, as far as it can be told apart.
func faultsOf(file string, err error) []config.Fault {
	if err == nil {
		return nil
	}
	if unread, ok := errors.AsType[*fs.PathError](err); ok && unread.Path == file {
		return []config.Fault{{At: file, Problem: "cannot be read: " + unread.Err.Error()}}
	}
	invalid, ok := errors.AsType[*config.InvalidError](err)
	if !ok {
		return []config.Fault{{Problem: err.Error()}}
	}
	faults := slices.Clone(invalid.Faults)
	if invalid.More > 0 {
		faults = append(faults, config.Fault{Problem: fmt.Sprintf("and %d more", invalid.More)})
	}
	return faults
}

func shownFaults(faults []config.Fault) []adminapi.ConfigFault {
	shown := make([]adminapi.ConfigFault, 0, len(faults))
	for _, f := range faults {
		shown = append(shown, adminapi.ConfigFault{At: f.At, Setting: f.Path, Problem: f.Problem})
	}
	return shown
}
