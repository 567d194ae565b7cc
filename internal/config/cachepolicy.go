package config

import (
	"sluice/internal/cache"
	"sluice/internal/routing"
)

// scopeKey is the scope of an answer that one key alone gets again.
const scopeKey = "key"

// Policy returns the settings in the words of package cache.
func (c Cache) Policy() cache.Policy {
	p := cache.Policy{
		MemoryBytes: int64(c.MemoryBytes), DatabaseBytes: int64(c.DatabaseBytes), MaxAnswer: int(c.MaxAnswerBytes),
		TTL: c.TTL, ByRequest: c.ByRequest,
	}
	for _, r := range c.Rules {
		p.Rules = append(p.Rules, cache.Rule{
			Name: r.Name, When: routing.When{All: matches(r.When.All), Any: matches(r.When.Any), Not: matches(r.When.Not)},
			Enabled: r.Enabled, TTL: r.TTL, StaleIfError: r.StaleIfError, PerKey: r.Scope == scopeKey, Coalesce: r.Coalesce,
		})
	}
	return p
}
