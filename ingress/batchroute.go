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
	key, err := s.keys.byID(ctx, b.KeyID)
	switch {
	case errors.Is(err, store.ErrNotFound), err == nil && (!key.Active(time.Now()) || key.Tenant != b.Tenant):
		return nil, inference.Errorf(inference.CodeUnauthenticated, "The API key that made the batch is not in force any more.")
	case err != nil:
		return nil, fmt.Errorf("look up key: %w", err)
	}
	return func(req *openaiapi.ChatRequest) ([]inference.Candidate, error) {
		candidates, err := s.route(key, s.lineQuestion(key, b.Kind, req))
		if err != nil && inference.AsError(err).Code == inference.CodeModelNotFound && time.Since(s.workers.began) < workersHeard {
			return nil, fmt.Errorf("model %q is not served yet: %s", req.Model, inference.CodeModelNotFound)
		}
		return candidates, err
	}, nil
}

// lineQuestion is what routing is asked for a line of a batch, which came without headers.
func (s *Ingress) lineQuestion(key store.Key, kind inference.Kind, req *openaiapi.ChatRequest) routing.Request {
	return routing.Request{
		Model: req.Model, Kind: kind, Tenant: key.Tenant, KeyID: key.ID, KeyName: key.Name,
		Header: func(string) string { return "" }, Metadata: req.Metadata, User: req.User,
		Tools: req.HasTools, Images: req.HasImages, StructuredOutput: req.Structured,
		PromptTokens: req.PromptTokens, OutputTokens: req.MaxOutput,
		Random: rand.Uint64(), Turn: s.workers.turn, Load: s.load,
	}
}

// byID returns the key of this id, as the database has it now. The error wraps
// store.ErrNotFound when there is none.
func (k *keyring) byID(ctx context.Context, id string) (store.Key, error) {
	for _, key := range k.static {
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
