package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
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
func greet(lc fx.Lifecycle, cfg *config.Config, db store.Store, l net.Listener, w welcome) {
	lc.Append(fx.StartHook(func(ctx context.Context) error {
		secret, err := firstKey(ctx, cfg, db)
		if err != nil {
			return startFailed(err)
		}
		w.tell(cfg, "http://"+l.Addr().String(), secret)
		return nil
	}))
}

// firstKey makes a key when neither the database nor the configuration has one. It
// returns "" otherwise: a secret is shown once.
func firstKey(ctx context.Context, cfg *config.Config, db store.Store) (string, error) {
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
	})
	if err != nil {
		return "", fmt.Errorf("make the first API key: %w", err)
	}
	return secret, nil
}

func (w welcome) tell(cfg *config.Config, base, secret string) {
	var b strings.Builder
	fmt.Fprintf(&b, "\nSluice serves an OpenAI-compatible API at %s/v1\n\nProviders:\n", base)
	if len(w.found) == 0 {
		for name, p := range cfg.Providers {
			fmt.Fprintf(&b, "  %-12s %s, from the configuration\n", name, p.Type)
		}
	}
	for _, f := range w.found {
		if f.Provider == nil {
			fmt.Fprintf(&b, "  %-12s %s, not used: %s\n", f.Name, f.What, f.Why)
			continue
		}
		fmt.Fprintf(&b, "  %-12s %s\n", f.Name, f.What)
	}
	if secret == "" {
		b.WriteString("\nAPI keys exist. 'sluice keys create NAME' makes another one.\n\n")
	} else {
		fmt.Fprintf(&b, "\nYour first API key, shown this once:\n\n  %s\n\nTry it:\n\n%s\n", secret, curlLine(base, secret, trialModel(cfg)))
	}
	_, _ = io.WriteString(w.out, b.String()) // a closed terminal is no reason to stop
}

// trialModel is a model that a first call can use.
func trialModel(cfg *config.Config) string {
	for _, p := range cfg.Providers {
		if p.Type == config.TypeSim && len(p.Models) > 0 {
			return p.Models[0]
		}
	}
	for _, p := range cfg.Providers {
		for _, m := range p.Models {
			if !strings.ContainsAny(m, "*?[") {
				return m
			}
		}
	}
	return "MODEL"
}

func curlLine(base, secret, model string) string {
	return fmt.Sprintf(`  curl %s/v1/chat/completions \
    -H 'Authorization: Bearer %s' -H 'Content-Type: application/json' \
    -d '{"model": "%s", "messages": [{"role": "user", "content": "Hello!"}]}'
`, base, secret, model)
}
