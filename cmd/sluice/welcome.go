package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/fx"

	"sluice/internal/apikey"
	"sluice/internal/config"
	"sluice/internal/queue"
	"sluice/store"
)

// welcome is what 'serve' tells a person.
type welcome struct {
	out   io.Writer
	found []config.Found
}

// greet makes the first API key, if there is none at all, and says how to use it.
// Without the database nobody knows whether there is one: then it says so, and what
// there is when the database is back. No key is made then, since nobody may be looking.
func greet(lc fx.Lifecycle, cfg *config.Config, db *database, l net.Listener, w welcome, log *slog.Logger) {
	ctx, cancel := context.WithCancel(context.Background())
	var later sync.WaitGroup
	lc.Append(fx.StartStopHook(
		func(start context.Context) error {
			base := baseURL(l.Addr().String())
			secret, err := db.firstKey(start, cfg)
			switch {
			case err == nil:
				w.tell(cfg, base, keysText(cfg, base, secret))
			case cfg.Store.URL == "":
				return startFailed(err)
			default:
				if !errors.Is(err, errNotYet) { // which is logged already
					log.Warn("no api key could be looked up", "error", err)
				}
				w.tell(cfg, base, unreachableText(cfg))
				later.Go(func() { w.tellWhenBack(ctx, cfg, db) })
			}
			return nil
		},
		func() {
			cancel()
			later.Wait()
		},
	))
}

// errNotYet says that the database was down at the start.
var errNotYet = errors.New("the database has not answered yet")

// firstKey makes a key when neither the database nor the configuration has one. It
// returns "" otherwise: a secret is shown once.
func (db *database) firstKey(ctx context.Context, cfg *config.Config) (string, error) {
	select {
	case <-db.usable:
	default:
		return "", errNotYet // to ask once more would only keep the start waiting
	}
	if len(cfg.Auth.Keys) > 0 {
		return "", nil
	}
	keys, err := db.ListKeys(ctx)
	if err != nil {
		return "", fmt.Errorf("look for API keys: %w", err)
	}
	if len(keys) > 0 {
		return "", nil // also when all are revoked: to make another one is a decision
	}
	secret, now := apikey.Mint(), time.Now()
	err = db.CreateKey(ctx, store.Key{
		ID: "key_" + queue.NewProcessID(), Name: "first-" + now.UTC().Format("20060102-150405"), Tenant: "default",
		Display: apikey.Display(secret), Hash: apikey.Hash(secret),
	}, store.Change{Actor: "serve"})
	if errors.Is(err, store.ErrNameTaken) {
		return "", nil // another process on the same database was first
	}
	if err != nil {
		return "", fmt.Errorf("make the first API key: %w", err)
	}
	return secret, nil
}

// baseURL is where a program on this machine reaches a listener: an address that stands
// for every interface is none to call.
func baseURL(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "http://" + address
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// tell greets. What there is to say about keys comes last.
func (w welcome) tell(cfg *config.Config, base, keys string) {
	var b strings.Builder
	fmt.Fprintf(&b, "\nSluice serves an OpenAI-compatible API at %s/v1\n\nProviders:\n", base)
	if len(w.found) == 0 {
		for _, name := range slices.Sorted(maps.Keys(cfg.Providers)) {
			fmt.Fprintf(&b, "  %-12s %s, from the configuration\n", name, cfg.Providers[name].Type)
		}
	}
	for _, f := range w.found {
		if f.Provider == nil {
			fmt.Fprintf(&b, "  %-12s %s, not used: %s\n", f.Name, f.What, f.Why)
			continue
		}
		fmt.Fprintf(&b, "  %-12s %s\n", f.Name, f.What)
	}
	w.say(b.String() + "\n" + keys + "\n")
}

// say writes to a person; a closed terminal is no reason to stop.
func (w welcome) say(text string) { _, _ = io.WriteString(w.out, text) }

const anotherKey = "API keys exist. 'sluice keys create NAME' makes another one.\n"

func keysText(cfg *config.Config, base, secret string) string {
	if secret == "" {
		return anotherKey
	}
	return fmt.Sprintf("Your first API key, shown this once:\n\n  %s\n\nTry it:\n\n%s", secret, curlLine(base, secret, trialModel(cfg)))
}

func unreachableText(cfg *config.Config) string {
	now := "Until it is back no caller can be let in."
	if len(cfg.Auth.Keys) > 0 {
		now = "The keys of the configuration work meanwhile."
	}
	return "The database cannot be reached, so no API key could be looked up or made.\n" + now +
		"\nOnce it is back, 'sluice keys list' shows its keys and 'sluice keys create NAME'\nmakes one, with the same configuration.\n"
}

// tellWhenBack waits for the database and says whether there are keys.
func (w welcome) tellWhenBack(ctx context.Context, cfg *config.Config, db *database) {
	tick := time.NewTicker(databasePoll)
	defer tick.Stop()
	select {
	case <-ctx.Done():
		return
	case <-db.usable:
	}
	for {
		keys, err := db.ListKeys(ctx)
		switch {
		case err != nil: // it has gone again
		case len(keys)+len(cfg.Auth.Keys) > 0:
			w.say("The database is back. " + anotherKey + "\n")
			return
		default:
			w.say("The database is back, and there is no API key. 'sluice keys create NAME' makes one.\n\n")
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// trialModel is a model that a first call can use: best a simulated one, which
// answers without an account.
func trialModel(cfg *config.Config) string {
	first := ""
	for _, name := range slices.Sorted(maps.Keys(cfg.Providers)) {
		p := cfg.Providers[name]
		i := slices.IndexFunc(p.Models, func(m string) bool { return !strings.ContainsAny(m, "*?[") })
		switch {
		case i >= 0 && p.Type == config.TypeSim:
			return p.Models[i]
		case i >= 0 && first == "":
			first = p.Models[i]
		}
	}
	return cmp.Or(first, "MODEL")
}

func curlLine(base, secret, model string) string {
	return fmt.Sprintf(`  curl %s/v1/chat/completions \
    -H 'Authorization: Bearer %s' -H 'Content-Type: application/json' \
    -d '{"model": "%s", "messages": [{"role": "user", "content": "Hello!"}]}'
`, base, secret, model)
}
