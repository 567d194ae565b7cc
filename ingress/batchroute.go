package ingress

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	batchengine "sluice/internal/batch"
	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/routing"
	"sluice/store"
)

// workersHeard is how long after its start an ingress may not know what workers serve: a
// model that nobody serves then may only not have been told of.
const workersHeard = 2 * workerGone

// batchRouter returns who decides where the lines of a batch go: what its key may ask
// for, as it is when they are validated.
func (s *Ingress) batchRouter(ctx context.Context, b *store.Batch) (batchengine.Router, error) {
	settings := s.current()
	key, err := s.batchCaller(ctx, settings.callers, b)
	switch {
	case errors.Is(err, store.ErrNotFound), err == nil && (!key.Active(time.Now()) || key.Tenant != b.Tenant):
		return nil, inference.Errorf(inference.CodeUnauthenticated, "The API key or token that made the batch is not in force any more.")
	case err != nil:
		return nil, fmt.Errorf("look up key: %w", err)
	}
	if err := s.tenants.admits(key.Tenant); err != nil {
		return nil, err
	}
	return func(req *openaiapi.ChatRequest) ([]inference.Candidate, error) {
		candidates, err := s.route(settings, key, s.lineQuestion(settings, key, b.Kind, req))
		if err != nil && inference.AsError(err).Code == inference.CodeModelNotFound && time.Since(s.workers.began) < workersHeard {
			return nil, fmt.Errorf("model %q is not served yet: %s", req.Model, inference.CodeModelNotFound)
		}
		if err != nil && inference.AsError(err).Code == inference.CodeProviderDraining {
			return nil, fmt.Errorf("model %q waits: %s", req.Model, inference.CodeProviderDraining)
		}
		return candidates, err
	}, nil
}

// batchCaller returns the key that made the batch, or what stands for one if a token did:
// then the batch has what it said.
func (s *Ingress) batchCaller(ctx context.Context, c callers, b *store.Batch) (store.Key, error) {
	if b.Caller == nil {
		return s.keys.byID(ctx, c, b.KeyID)
	}
	if !c.tokens.Vouches(b.KeyID) {
		return store.Key{}, fmt.Errorf("caller %s: %w", b.KeyID, store.ErrNotFound)
	}
	return store.Key{ID: b.KeyID, Name: b.KeyName, Tenant: b.Tenant, Models: b.Caller.Models, Limits: b.Caller.Limits}, nil
}

// lineQuestion is what routing is asked for a line of a batch, which came without headers.
func (s *Ingress) lineQuestion(settings *Settings, key store.Key, kind inference.Kind, req *openaiapi.ChatRequest) routing.Request {
	return routing.Request{
		Model: req.Model, Kind: kind, Tenant: key.Tenant, KeyID: key.ID, KeyName: key.Name,
		Header: func(string) string { return "" }, Metadata: req.Metadata, User: req.User,
		Tools: req.HasTools, Images: req.HasImages, StructuredOutput: req.Structured,
		PromptTokens: req.PromptTokens, OutputTokens: req.MaxOutput,
		Random: rand.Uint64(), Turn: settings.layout.turn, Load: s.load,
	}
}

// byID returns the key of this id, as the database has it now. The error wraps
// store.ErrNotFound when there is none.
func (k *keyring) byID(ctx context.Context, c callers, id string) (store.Key, error) {
	for _, key := range c.static {
		if key.ID == id {
			return key, nil
		}
	}
	all, _, err := k.store.KeysChangedSince(ctx, time.Time{})
	if err != nil {
		return store.Key{}, err
	}
	for _, key := range all {
		if key.ID == id {
			return key, nil
		}
	}
	return store.Key{}, fmt.Errorf("key %s: %w", id, store.ErrNotFound)
}
