// Package config reads Sluice's static configuration: defaults, then one YAML
// file, then the environment. It refuses what it does not understand and says
// where each fault stands; it prints the JSON Schema and the effective settings.
//
// The structs in config.go are the one source of every setting's name, default,
// bounds and description: the decoder, the names of the environment variables and
// the schema are all derived from them.
//
// The package never starts anything, never logs, and never puts a setting's value
// into an error, since any value may be a secret in the wrong place. The
// composition root hands each component its own section; no component imports the
// whole. What a client's key must be it asks package store, which holds keys of the
// database to the same; what can be sent to an upstream, package providers, by whose
// rules the adapters go.
package config
