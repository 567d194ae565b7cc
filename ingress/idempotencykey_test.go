package ingress

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/store"
)

func TestAKeyStandsForOneRequest(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, r *keyRig) {
		t.Helper()
		second := r.second()
		first := r.chat(plainRequest, idem, "k1")
		k := r.take()
		k.succeed(`{"n":1}`)
		resp, body := first.whole()
		require.Equal(t, `{"n":1}`, body)
		require.Empty(t, resp.Header.Get("Idempotency-Replayed"))
		require.Equal(t, k.job.ID, resp.Header.Get("X-Sluice-Job-Id"))

		again := r.chat(plainRequest, idem, "k1")
		r.same(again, resp, body)
		r.same(r.chatAt(second, plainRequest, idem, "k1"), resp, body)
		r.same(r.chat(plainRequest, idem, "k1", "X-Sluice-Timeout", "9s", "X-Stainless-Retry-Count", "2"), resp, body)

		chat := r.server.URL + "/v1/chat/completions"
		for name, q := range map[string]*http.Request{
			"body":   r.request(http.MethodPost, chat, strings.Replace(plainRequest, "hi", "ho", 1), idem, "k1"),
			"path":   r.request(http.MethodPost, r.server.URL+"/v1/embeddings", plainRequest, idem, "k1"),
			"query":  r.request(http.MethodPost, chat+"?x=1", plainRequest, idem, "k1"),
			"form":   r.request(http.MethodPost, chat, plainRequest, idem, "k1", "Prefer", "respond-async"),
			"ours":   r.request(http.MethodPost, chat, plainRequest, idem, "k1", "X-Sluice-Webhook", "https://hooks.example.com"),
			"border": r.request(http.MethodPost, chat, "", idem, "k1"),
		} {
			resp, body := r.send(q).whole()
			require.Equal(t, http.StatusUnprocessableEntity, resp.StatusCode, name)
			var e struct{ Error struct{ Code, Param string } }
			require.NoError(t, json.Unmarshal([]byte(body), &e))
			require.Equal(t, "idempotency_key_reused", e.Error.Code, name)
			require.Equal(t, "Idempotency-Key", e.Error.Param, name)
		}
		r.chat(plainRequest, idem, "k1", "Authorization", "Bearer a-key-of-others").fails(http.StatusForbidden, inference.CodeModelNotAllowed)
		r.quiet()

		for _, headers := range [][]string{{idem, "k2"}, nil} {
			other := r.chat(plainRequest, headers...)
			r.take().succeed(`{"n":2}`)
			_, body = other.whole()
			require.Equal(t, `{"n":2}`, body, "another key, or none, is another request")
		}
		r.free()
	})
}

func TestKeysThatAreNone(t *testing.T) {
	t.Parallel()
	r := setupKeys(t, databases["sqlite"](t))
	for name, values := range map[string][]string{
		"empty": {""}, "blank": {"a b"}, "long": {strings.Repeat("k", 256)}, "not ascii": {"schlüssel"}, "two": {"a", "b"}, "tab": {"a\tb"},
	} {
		for _, path := range []string{"/v1/chat/completions", "/v1/embeddings", "/v1/files"} {
			q := r.request(http.MethodPost, r.server.URL+path, plainRequest)
			q.Header[idem] = values
			resp, body := r.send(q).whole()
			require.Equal(t, http.StatusBadRequest, resp.StatusCode, "%s at %s: %s", name, path, body)
			require.Contains(t, body, `"param":"Idempotency-Key"`, name)
		}
	}
	r.chat(plainRequest, idem, "a b", "Authorization", "Bearer x").fails(http.StatusUnauthorized, inference.CodeUnauthenticated)
	r.chat(plainRequest, idem, "k", "X-Sluice-Timeout", "soon").fails(http.StatusBadRequest, inference.CodeInvalidRequest)
	r.chat(strings.Repeat(" ", 4<<20+1), idem, "k").fails(http.StatusRequestEntityTooLarge, inference.CodeRequestTooLarge)
	resp, _ := r.get("/v1/models", idem, "a b").whole()
	require.Equal(t, http.StatusOK, resp.StatusCode, "a key means something for a POST alone")

	c := r.chat(plainRequest, idem, strings.Repeat("~", 255))
	r.take().succeed(`{}`)
	c.whole()
	r.free()
}

func TestABodyIsInMemoryOnce(t *testing.T) {
	t.Parallel()
	r := setupKeys(t, databases["sqlite"](t))
	c := r.chat(plainRequest, idem, "k")
	k := r.take()
	require.EqualValues(t, len(plainRequest), r.ingress.flights.bodies.held.Load())
	require.Equal(t, plainRequest, string(k.job.Body))
	k.succeed(`{}`)
	c.whole()
	r.free()
}

func TestAnUploadWithAKey(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, r *keyRig) {
		t.Helper()
		upload := func(key, content string) *call {
			q := r.uploadRequest(part{"purpose", "", "batch"}, part{"file", "f.jsonl", content})
			q.Header.Set(idem, key)
			return r.send(q)
		}
		resp, body := upload("k1", "content").whole()
		require.Equal(t, http.StatusOK, resp.StatusCode, body)
		r.same(upload("k1", "content"), resp, body) // with another boundary in its form
		upload("k1", "another").fails(http.StatusUnprocessableEntity, inference.CodeIdempotencyReused)
		r.chat(plainRequest, idem, "k1").fails(http.StatusUnprocessableEntity, inference.CodeIdempotencyReused)

		calls := make([]*call, 3)
		for n := range calls {
			calls[n] = upload("k2", "content")
		}
		ids := make(map[string]bool)
		for _, c := range calls {
			_, body := c.whole()
			var f fileAnswer
			require.NoError(t, json.Unmarshal([]byte(body), &f), body)
			ids[f.ID] = true
		}
		require.Len(t, ids, 1)
		files, _, err := r.rows.ListFiles(t.Context(), store.FileFilter{Tenant: "team"})
		require.NoError(t, err)
		require.Len(t, files, 2)
		kept := make(map[string]bool)
		for entries := r.conn.NewEntryReader(); ; {
			batch, err := entries.Next(t.Context())
			require.NoError(t, err)
			if len(batch) == 0 {
				break
			}
			for _, e := range batch {
				kept[e.ID] = true
			}
		}
		require.Equal(t, map[string]bool{files[0].ID: true, files[1].ID: true}, kept, "contents of replays are gone")
		r.free()
	})
}
