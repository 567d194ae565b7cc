package ingress

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
	"sluice/store/sqlite"
)

// fileRig is a rig with files, of at most 2 MiB, and of 1 MiB for batches.
type fileRig struct {
	*rig
	rows store.Store
}

func setupFiles(t *testing.T, change ...func(*FileOptions)) *fileRig {
	t.Helper()
	rows, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "sluice.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, rows.Close()) })
	require.NoError(t, rows.Migrate(t.Context()))
	r := setup(t, func(o *Options) {
		o.Files = FileOptions{Rows: rows, MaxBytes: 2 << 20, MaxBatchBytes: 1 << 20, MaxTransfers: 4}
		for _, c := range change {
			c(&o.Files)
		}
	})
	return &fileRig{r, rows}
}

// part is one part of a form; with a filename it is a file.
type part struct{ name, filename, content string }

func form(parts ...part) (body []byte, kind string) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range parts {
		var to io.Writer
		if p.filename != "" {
			to, _ = w.CreateFormFile(p.name, p.filename)
		} else {
			to, _ = w.CreateFormField(p.name)
		}
		_, _ = io.WriteString(to, p.content)
	}
	_ = w.Close()
	return b.Bytes(), w.FormDataContentType()
}

func (r *fileRig) uploadRequest(parts ...part) *http.Request {
	r.t.Helper()
	body, kind := form(parts...)
	return r.request(http.MethodPost, r.server.URL+"/v1/files", string(body), "Content-Type", kind)
}

type fileAnswer struct {
	ID, Object, Filename, Purpose, Status string
	Bytes                                 int64
	CreatedAt                             int64  `json:"created_at"`
	ExpiresAt                             *int64 `json:"expires_at"`
}

func (r *fileRig) upload(parts ...part) fileAnswer {
	r.t.Helper()
	resp, body := r.send(r.uploadRequest(parts...)).whole()
	require.Equal(r.t, http.StatusOK, resp.StatusCode, body)
	var f fileAnswer
	require.NoError(r.t, json.Unmarshal([]byte(body), &f))
	return f
}

// empty checks that neither a row nor anything of a content is left.
func (r *fileRig) empty() {
	r.t.Helper()
	entries, err := r.conn.NewEntryReader().Next(r.t.Context())
	require.NoError(r.t, err)
	require.Empty(r.t, entries)
	files, _, err := r.rows.ListFiles(r.t.Context(), store.FileFilter{Tenant: "team"})
	require.NoError(r.t, err)
	require.Empty(r.t, files)
}

func TestAFilesLife(t *testing.T) {
	t.Parallel()
	r := setupFiles(t)
	content := strings.Repeat("0123456789", 60_000)
	before := time.Now().Unix()
	f := r.upload(part{"purpose", "", "batch"}, part{"file", "lines.jsonl", content})
	require.Regexp(t, `^file-[a-z2-7]{24}$`, f.ID)
	require.Equal(t, fileAnswer{f.ID, "file", "lines.jsonl", "batch", "processed", 600_000, f.CreatedAt, nil}, f)
	require.InDelta(t, before, f.CreatedAt, 5)

	_, body := r.get("/v1/files/" + f.ID).whole()
	require.JSONEq(t, fmt.Sprintf(`{"id":%q,"object":"file","bytes":600000,"created_at":%d,"filename":"lines.jsonl","purpose":"batch","status":"processed"}`, f.ID, f.CreatedAt), body)
	resp, body := r.get("/v1/files/" + f.ID + "/content").whole()
	require.Equal(t, content, body)
	sum := sha256.Sum256([]byte(content))
	require.Equal(t, `"`+hex.EncodeToString(sum[:])+`"`, resp.Header.Get("Etag"))
	require.Equal(t, "application/jsonl", resp.Header.Get("Content-Type"))
	require.Equal(t, "attachment; filename=lines.jsonl", resp.Header.Get("Content-Disposition"))
	require.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
	require.EqualValues(t, 600_000, resp.ContentLength)

	// To everyone else there is no such file.
	for _, req := range []*http.Request{
		r.request(http.MethodGet, r.server.URL+"/v1/files/"+f.ID, "", "Authorization", "Bearer a-key-of-others"),
		r.request(http.MethodGet, r.server.URL+"/v1/files/"+f.ID+"/content", "", "Authorization", "Bearer a-key-of-others"),
		r.request(http.MethodDelete, r.server.URL+"/v1/files/"+f.ID, "", "Authorization", "Bearer a-key-of-others"),
	} {
		r.send(req).fails(404, inference.CodeNotFound)
	}
	_, body = r.send(r.request(http.MethodGet, r.server.URL+"/v1/files", "", "Authorization", "Bearer a-key-of-others")).whole()
	require.JSONEq(t, `{"object":"list","data":[],"first_id":"","last_id":"","has_more":false}`, body)

	_, body = r.send(r.request(http.MethodDelete, r.server.URL+"/v1/files/"+f.ID, "")).whole()
	require.JSONEq(t, fmt.Sprintf(`{"id":%q,"object":"file","deleted":true}`, f.ID), body)
	r.empty()
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		r.send(r.request(method, r.server.URL+"/v1/files/"+f.ID, "")).fails(404, inference.CodeNotFound)
	}
	r.get("/v1/files/"+f.ID+"/content").fails(404, inference.CodeNotFound)
	resp = r.send(r.request(http.MethodPost, r.server.URL+"/v1/files/"+f.ID, "x")).fails(405, inference.CodeMethodNotAllowed)
	require.Equal(t, "DELETE, GET", resp.Header.Get("Allow"))
}

func TestListingFiles(t *testing.T) {
	t.Parallel()
	r := setupFiles(t)
	var ids []string // newest first
	for i := range 5 {
		purpose := []string{"batch", "vision"}[i%2]
		ids = append([]string{r.upload(part{"purpose", "", purpose}, part{"file", "f", "x"}).ID}, ids...)
	}
	list := func(query string) (got []string, more bool) {
		resp, body := r.get("/v1/files" + query).whole()
		require.Equal(t, http.StatusOK, resp.StatusCode, body)
		var page struct {
			Data    []fileAnswer
			FirstID string `json:"first_id"`
			LastID  string `json:"last_id"`
			HasMore bool   `json:"has_more"`
		}
		require.NoError(t, json.Unmarshal([]byte(body), &page))
		for _, f := range page.Data {
			got = append(got, f.ID)
		}
		require.Equal(t, got[0], page.FirstID)
		require.Equal(t, got[len(got)-1], page.LastID)
		return got, page.HasMore
	}
	got, more := list("")
	require.Equal(t, ids, got)
	require.False(t, more)
	got, more = list("?limit=2&after=" + ids[1])
	require.Equal(t, ids[2:4], got)
	require.True(t, more)
	got, _ = list("?order=asc&purpose=vision")
	require.Equal(t, []string{ids[3], ids[1]}, got)

	for query, param := range map[string]string{
		"?order=up": "order", "?limit=0": "limit", "?limit=10001": "limit", "?limit=x": "limit", "?purpose=fun": "purpose", "?after=file-none": "after",
	} {
		resp, body := r.get("/v1/files" + query).whole()
		require.Equal(t, 400, resp.StatusCode, query)
		require.Contains(t, body, fmt.Sprintf(`"param":%q`, param))
	}
	r.get("/v1/files", "Authorization", "x").fails(401, inference.CodeUnauthenticated)
}

func TestRanges(t *testing.T) {
	t.Parallel()
	r := setupFiles(t)
	content := make([]byte, 900_001)
	for i := range content {
		content[i] = byte('a' + i%23)
	}
	size := len(content)
	f := r.upload(part{"purpose", "", "batch"}, part{"file", "f", string(content)})
	hollow := r.upload(part{"purpose", "", "batch"}, part{"file", "f", ""})
	for header, want := range map[string]struct{ from, to int }{
		"bytes=0-0": {0, 0}, "bytes=131071-131072": {131071, 131072}, "bytes=800000-": {800000, size - 1}, "bytes=-7": {size - 7, size - 1},
		"BYTES=5-99999999": {5, size - 1}, "bytes=-99999999": {0, size - 1}, "bytes=0-": {0, size - 1},
	} {
		resp, body := r.get("/v1/files/"+f.ID+"/content", "Range", header).whole()
		require.Equal(t, http.StatusPartialContent, resp.StatusCode, header)
		require.Equal(t, fmt.Sprintf("bytes %d-%d/%d", want.from, want.to, size), resp.Header.Get("Content-Range"))
		require.Equal(t, string(content[want.from:want.to+1]), body, header)
	}
	for _, header := range []string{"bytes=5-4", "bytes=x-", "bytes=", "lines=1-2", "bytes=0-1,4-5", "bytes=+1-2", "bytes=99999999999999999999-"} {
		resp, body := r.get("/v1/files/"+f.ID+"/content", "Range", header).whole()
		require.Equal(t, http.StatusOK, resp.StatusCode, header)
		require.Len(t, body, size)
	}
	for id, headers := range map[string][]string{f.ID: {"bytes=900001-", "bytes=-0"}, hollow.ID: {"bytes=0-", "bytes=-1"}} {
		for _, header := range headers {
			resp := r.get("/v1/files/"+id+"/content", "Range", header).fails(416, inference.CodeRangeNotSatisfiable)
			require.Regexp(t, `^bytes \*/(900001|0)$`, resp.Header.Get("Content-Range"))
		}
	}
}

func TestAContentThatIsGone(t *testing.T) {
	t.Parallel()
	r := setupFiles(t)
	f := r.upload(part{"purpose", "", "batch"}, part{"file", "f", "x"})
	require.NoError(t, r.conn.EnsureFiles(t.Context()))
	require.NoError(t, r.conn.RemoveFile(t.Context(), f.ID))
	_, body := r.get("/v1/files/" + f.ID + "/content").whole()
	require.Contains(t, body, "The content of this file is gone.")
	r.get("/v1/files/"+f.ID+"/content").fails(404, inference.CodeNotFound)
	resp, _ := r.get("/v1/files/" + f.ID).whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
}

func TestExpiryIsCarriedOut(t *testing.T) {
	t.Parallel()
	r := setupFiles(t)
	brief := []part{{"purpose", "", "batch"}, {"expires_after[anchor]", "", "created_at"}, {"expires_after[seconds]", "", "3600"}, {"file", "f", "x"}}
	var last fileAnswer
	for range expirePortion + 1 {
		last = r.upload(brief...)
	}
	kept := r.upload(part{"purpose", "", "batch"}, part{"file", "f", "kept"})
	at := time.Unix(*last.ExpiresAt, 0)
	r.ingress.files.expire(t.Context(), at.Add(-time.Hour))
	_, body := r.get("/v1/files/" + last.ID + "/content").whole()
	require.Equal(t, "x", body)
	r.ingress.files.expire(t.Context(), at.Add(time.Second))
	r.get("/v1/files/"+last.ID).fails(404, inference.CodeNotFound)
	entries, err := r.conn.NewEntryReader().Next(t.Context())
	require.NoError(t, err)
	require.Len(t, entries, 1, "the contents are gone, too")
	require.Equal(t, kept.ID, entries[0].ID)
}

func TestStraysAreSwept(t *testing.T) {
	t.Parallel()
	r := setupFiles(t)
	kept := r.upload(part{"purpose", "", "batch"}, part{"file", "f", "kept"})
	require.NoError(t, r.conn.EnsureFiles(t.Context()))
	_, err := r.conn.PutFile(t.Context(), "file-stray", strings.NewReader("stray"))
	require.NoError(t, err)
	_, err = r.conn.PutFile(t.Context(), "file-hollow", strings.NewReader(""))
	require.NoError(t, err)
	r.ingress.files.sweep(t.Context(), time.Now().Add(strayAge-time.Minute))
	_, err = r.conn.OpenFile(t.Context(), "file-hollow", 0)
	require.NoError(t, err)
	_, err = r.conn.OpenFile(t.Context(), "file-stray", 0)
	require.NoError(t, err, "its row may still come")

	r.ingress.files.sweep(t.Context(), time.Now().Add(strayAge+time.Minute))
	_, err = r.conn.OpenFile(t.Context(), "file-stray", 0)
	require.ErrorIs(t, err, queue.ErrNoFile)
	_, err = r.conn.OpenFile(t.Context(), "file-hollow", 0)
	require.ErrorIs(t, err, queue.ErrNoFile)
	_, body := r.get("/v1/files/" + kept.ID + "/content").whole()
	require.Equal(t, "kept", body)
}

func TestASlowUploadIsNotSwept(t *testing.T) {
	t.Parallel()
	r := setupFiles(t)
	conn := r.raw(1<<20, rawForm+strings.Repeat("x", 400_000))
	require.NoError(t, r.conn.EnsureFiles(t.Context()))
	var (
		id      string
		touched time.Time
	)
	require.Eventually(t, func() bool {
		entries, err := r.conn.NewEntryReader().Next(t.Context())
		if err != nil || len(entries) == 0 {
			return false
		}
		id = entries[0].ID
		touched, err = r.conn.FileTouched(t.Context(), id)
		return err == nil && touched.After(entries[0].At)
	}, soon, 5*time.Millisecond)
	r.ingress.files.sweep(t.Context(), touched.Add(strayAge-1)) // the upload was begun before that
	after, err := r.conn.FileTouched(t.Context(), id)
	require.NoError(t, err)
	require.False(t, after.Before(touched), "its chunks are there")
	r.ingress.files.sweep(t.Context(), time.Now().Add(2*strayAge))
	after, err = r.conn.FileTouched(t.Context(), id)
	require.NoError(t, err)
	require.True(t, after.IsZero())
	require.NoError(t, conn.Close())
}

// brokenRows is a database that fails, perhaps after it has done what it was asked to.
type brokenRows struct {
	store.Files
	late bool
}

func (b *brokenRows) CreateFile(ctx context.Context, f store.File) error {
	if b.late {
		_ = b.Files.CreateFile(ctx, f)
	}
	return errors.New("the database does not answer")
}

func TestADatabaseThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		r := setupFiles(t, func(o *FileOptions) { o.Rows = &brokenRows{o.Rows, late} })
		r.send(r.uploadRequest(part{"purpose", "", "batch"}, part{"file", "f", "x"})).fails(503, inference.CodeStorageUnavailable)
		r.empty()
	}
}

func TestWithoutRowsThereAreNoFiles(t *testing.T) {
	t.Parallel()
	setup(t).get("/v1/files").fails(404, inference.CodeNotFound)
}
