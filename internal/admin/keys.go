package admin

import (
	"cmp"
	"crypto/rand"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"sluice/internal/adminapi"
	"sluice/internal/apikey"
	"sluice/internal/inference"
	"sluice/store"
)

// overlapUsual is how long a replaced secret stays valid if nobody says otherwise.
const overlapUsual = 24 * time.Hour

func (a *API) registerKeys(r *mux.Router) {
	one := adminapi.KeysPath + "/{key:.+}"
	r.HandleFunc(adminapi.KeysPath, a.createKey).Methods(http.MethodPost)
	r.HandleFunc(adminapi.KeysPath, a.listKeys).Methods(http.MethodGet)
	r.HandleFunc(one+"/rotate", a.rotateKey).Methods(http.MethodPost)
	r.HandleFunc(one, a.getKey).Methods(http.MethodGet)
	r.HandleFunc(one, a.updateKey).Methods(http.MethodPatch)
	r.HandleFunc(one, a.revokeKey).Methods(http.MethodDelete)
}

func (a *API) createKey(w http.ResponseWriter, r *http.Request) {
	var req adminapi.CreateKey
	if err := Read(w, r, &req); err != nil {
		a.opt.Fail(w, r, err)
		return
	}
	now := time.Now()
	secret := apikey.Mint()
	key := store.Key{
		ID: newKeyID(), Name: req.Name, Tenant: cmp.Or(req.Tenant, "default"), Models: req.Models, Limits: req.Limits.Value,
		Display: apikey.Display(secret), Hash: apikey.Hash(secret),
	}
	err := checkName("name", "name", key.Name)
	if err == nil {
		err = checkName("tenant", "tenant", key.Tenant)
	}
	if err == nil {
		key.ExpiresAt, err = endOf(req, now)
	}
	if err == nil {
		err = keyFault(key)
	}
	if err == nil {
		err = a.opt.Store.CreateKey(r.Context(), key, a.by(r))
	}
	if err == nil {
		key, err = a.opt.Store.Key(r.Context(), key.ID)
	}
	if err != nil {
		a.opt.Fail(w, r, keyError(err))
		return
	}
	shown := shownKey(key, now)
	shown.Secret = secret
	a.write(w, r, http.StatusCreated, shown)
}

func newKeyID() string { return "key_" + strings.ToLower(rand.Text()) }

func endOf(req adminapi.CreateKey, now time.Time) (time.Time, error) {
	switch {
	case req.ExpiresAt != nil && req.ExpiresIn != "":
		return time.Time{}, invalid("expires_in", "expires_in stands beside expires_at; give one of them.")
	case req.ExpiresIn != "":
		d, err := time.ParseDuration(req.ExpiresIn)
		if err != nil || d <= 0 {
			return time.Time{}, invalid("expires_in", `expires_in must be a positive time, such as "720h".`)
		}
		return now.Add(d), nil
	case req.ExpiresAt != nil:
		return *req.ExpiresAt, checkEnd(*req.ExpiresAt, now)
	}
	return time.Time{}, nil
}

func checkEnd(end, now time.Time) error {
	if !end.After(now) {
		return invalid("expires_at", "expires_at must lie ahead; to end a key now, revoke it.")
	}
	return nil
}

// keyFault names the field of a key that cannot be stored.
func keyFault(k store.Key) error {
	faults := k.Faults()
	if len(faults) == 0 {
		return nil
	}
	return invalid(faults[0].Field, "%s.", faults[0].Error())
}

// keyError is an error of the store as it is answered.
func keyError(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return inference.Errorf(inference.CodeNotFound, "There is no key with this id or name.")
	case errors.Is(err, store.ErrNameTaken):
		return &inference.Error{Code: inference.CodeConflict, Param: "name", Message: "name already taken by a key in force."}
	case errors.Is(err, store.ErrTooMany):
		return inference.Errorf(inference.CodeConflict, `The key has %d replaced secrets that are valid yet. Wait for one to end, or rotate with the overlap "0s", which ends them all.`, store.MaxReplaced)
	case errors.Is(err, store.ErrConflict):
		return inference.Errorf(inference.CodeConflict, "The key is revoked, or has changed since it was looked at.")
	}
	return err
}

func (a *API) getKey(w http.ResponseWriter, r *http.Request) {
	key, err := a.opt.Store.Key(r.Context(), mux.Vars(r)["key"])
	a.answerKey(w, r, key, err)
}

func (a *API) answerKey(w http.ResponseWriter, r *http.Request, key store.Key, err error) {
	if err != nil {
		a.opt.Fail(w, r, keyError(err))
		return
	}
	a.write(w, r, http.StatusOK, shownKey(key, time.Now()))
}

func (a *API) listKeys(w http.ResponseWriter, r *http.Request) {
	q := queryOf(r)
	limit := q.limit()
	f := store.KeyFilter{Tenant: q.text("tenant"), State: store.KeyState(q.text("state")), Now: time.Now(), Limit: limit + 1, After: q.text("after")}
	switch f.State {
	case "", store.KeyActive, store.KeyExpired, store.KeyRevoked:
	default:
		q.wrong("state", "state must be %s, %s or %s.", store.KeyActive, store.KeyExpired, store.KeyRevoked)
	}
	err := q.err
	var keys []store.Key
	if err == nil {
		keys, err = a.opt.Store.FindKeys(r.Context(), f)
	}
	if err != nil {
		a.opt.Fail(w, r, afterFault(err))
		return
	}
	list := adminapi.KeyList{Keys: []adminapi.Key{}}
	keys, list.Page = pageOf(keys, limit, func(k store.Key) string { return k.ID })
	for _, k := range keys {
		list.Keys = append(list.Keys, shownKey(k, f.Now))
	}
	a.write(w, r, http.StatusOK, list)
}

// updateTries is how often a change that is not of a certain state is made again, when
// another one came between the look and the change.
const updateTries = 5

func (a *API) updateKey(w http.ResponseWriter, r *http.Request) {
	var req adminapi.UpdateKey
	if err := Read(w, r, &req); err != nil {
		a.opt.Fail(w, r, err)
		return
	}
	var key store.Key
	err := store.ErrConflict
	for range updateTries {
		if !errors.Is(err, store.ErrConflict) {
			break
		}
		if key, err = a.opt.Store.Key(r.Context(), mux.Vars(r)["key"]); err != nil {
			break
		}
		if key, err = changed(key, req); err == nil {
			key, err = a.opt.Store.UpdateKey(r.Context(), key, a.by(r))
		}
	}
	a.answerKey(w, r, key, err)
}

// changed returns the key as the request wants it.
func changed(k store.Key, req adminapi.UpdateKey) (store.Key, error) {
	switch {
	case !k.RevokedAt.IsZero():
		return k, inference.Errorf(inference.CodeConflict, "The key is revoked; it changes no more.")
	case req.UpdatedAt != nil && !req.UpdatedAt.Equal(k.UpdatedAt):
		return k, inference.Errorf(inference.CodeConflict, "The key has changed since: its updated_at is %s.", k.UpdatedAt.Format(time.RFC3339Nano))
	}
	if req.Name != nil {
		if err := checkName("name", "name", *req.Name); err != nil && *req.Name != k.Name {
			return k, err
		}
		k.Name = *req.Name
	}
	if req.Models.Given {
		k.Models = nil
		if req.Models.Value != nil {
			k.Models = *req.Models.Value
		}
	}
	if req.ExpiresAt.Given {
		k.ExpiresAt = time.Time{}
		if req.ExpiresAt.Value != nil {
			k.ExpiresAt = *req.ExpiresAt.Value
			if err := checkEnd(k.ExpiresAt, time.Now()); err != nil {
				return k, err
			}
		}
	}
	if req.Limits.Given {
		k.Limits = req.Limits.Value
	}
	return k, keyFault(k)
}

func (a *API) rotateKey(w http.ResponseWriter, r *http.Request) {
	var req adminapi.RotateKey
	err := Read(w, r, &req)
	overlap := overlapUsual
	if err == nil && req.Overlap != "" {
		overlap, err = time.ParseDuration(req.Overlap)
		if err != nil || overlap < 0 || overlap > store.MaxOverlap {
			err = invalid("overlap", `overlap must be a time from "0s" to %q, such as "24h".`, store.MaxOverlap)
		}
	}
	if err != nil {
		a.opt.Fail(w, r, err)
		return
	}
	secret := apikey.Mint()
	key, err := a.opt.Store.RotateKey(r.Context(), mux.Vars(r)["key"], store.Rotation{
		Hash: apikey.Hash(secret), Display: apikey.Display(secret), Overlap: overlap,
	}, a.by(r))
	if err != nil {
		a.opt.Fail(w, r, keyError(err))
		return
	}
	shown := shownKey(key, time.Now())
	shown.Secret = secret
	a.write(w, r, http.StatusOK, shown)
}

func (a *API) revokeKey(w http.ResponseWriter, r *http.Request) {
	key, err := a.opt.Store.RevokeKey(r.Context(), mux.Vars(r)["key"], a.by(r))
	a.answerKey(w, r, key, err)
}

func shownKey(k store.Key, now time.Time) adminapi.Key {
	shown := adminapi.Key{
		ID: k.ID, Name: k.Name, Tenant: k.Tenant, Display: k.Display, Models: append([]string{}, k.Models...), Limits: k.Limits,
		State: string(k.State(now)), CreatedAt: k.CreatedAt, UpdatedAt: k.UpdatedAt,
		ExpiresAt: timeOrNull(k.ExpiresAt), RevokedAt: timeOrNull(k.RevokedAt), Replaced: []adminapi.ReplacedKey{},
	}
	for _, r := range k.Replaced {
		shown.Replaced = append(shown.Replaced, adminapi.ReplacedKey{Display: r.Display, ValidUntil: r.Until})
	}
	return shown
}
