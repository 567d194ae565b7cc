package ingress

import (
	"context"
	"errors"
	"slices"
	"strings"

	"sluice/internal/inference"
	"sluice/internal/token"
	"sluice/store"
)

// FileKeyPrefix begins the ids of keys of the configuration. No key of the database has it.
const FileKeyPrefix = "config:"

// keyNamed returns the key of the file or of the database that has this id or name.
func (s *Ingress) keyNamed(ctx context.Context, idOrName string) (store.Key, error) {
	static := s.current().StaticKeys
	if i := slices.IndexFunc(static, func(k store.Key) bool { return k.ID == idOrName || k.Name == idOrName }); i >= 0 {
		return static[i], nil
	}
	key, err := store.Key{}, store.ErrNotFound
	if s.opt.Admin != nil {
		key, err = s.opt.Admin.Key(ctx, idOrName)
	}
	if errors.Is(err, store.ErrNotFound) {
		return key, &inference.Error{Code: inference.CodeNotFound, Param: "key", Message: "There is no key with this id or name.", Err: err}
	}
	return key, err
}

// keyIDOf returns the id of the key with this id or name, also of one that may have been
// here: a key of a file, this process's earlier one or another's, and a caller of tokens.
// The database never loses a key.
func (s *Ingress) keyIDOf(ctx context.Context, idOrName string) (string, error) {
	key, err := s.keyNamed(ctx, idOrName)
	if errors.Is(err, store.ErrNotFound) && (token.IsCaller(idOrName) || strings.HasPrefix(idOrName, FileKeyPrefix)) {
		return idOrName, nil
	}
	return key.ID, err
}
