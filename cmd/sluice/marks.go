package main

import (
	"errors"
	"reflect"
	"strconv"

	"sluice/internal/config"
	"sluice/worker"
)

// mark tells whether a provider is set up as it was before, without a word of how: its
// numbers change with what they stand for.
type mark struct {
	provider           config.Provider
	settings, upstream int
}

// marks are those of all providers, by name.
type marks map[string]mark

// marksOf returns the marks of the turn's configuration, which follows the one of before. A
// provider that is new, or set up in another way, gets the number of the turn, which no
// earlier one had: a worker may have a provider in hand still that was taken out and comes
// back as another one. All that a member is made of besides its provider's section needs a
// restart to change.
func marksOf(turn int, before marks, cfg *config.Config) marks {
	next := make(marks, len(cfg.Providers))
	for name, p := range cfg.Providers {
		m := mark{provider: p, settings: turn, upstream: turn}
		if was, ok := before[name]; ok {
			if reflect.DeepEqual(p, was.provider) {
				m.settings = was.settings
			}
			if reflect.DeepEqual(upstreamOf(p), upstreamOf(was.provider)) {
				m.upstream = was.upstream
			}
		}
		next[name] = m
	}
	return next
}

// upstreamOf is what of a provider says whom it calls, and as whom.
func upstreamOf(p config.Provider) config.Provider {
	return config.Provider{
		Type: p.Type, BaseURL: p.BaseURL, APIKey: p.APIKey, APIKeys: p.APIKeys, Headers: p.Headers, Proxy: p.Proxy, Azure: p.Azure, Custom: p.Custom,
	}
}

// member is a provider that a worker is to serve.
type member = worker.Member

func (m marks) of(name string) (settings, upstream string) {
	return strconv.Itoa(m[name].settings), strconv.Itoa(m[name].upstream)
}

// closeAdapters lets go of members that nobody took.
func closeAdapters(members []member) error {
	var err error
	for i := range members {
		err = errors.Join(err, members[i].Provider.Close())
	}
	return err
}
