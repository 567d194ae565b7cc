package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
	"sluice/store"
)

// aFile returns bytes that do not repeat themselves, with the canary in them.
func aFile(size int) []byte {
	r := rand.NewChaCha8([32]byte{byte(size)})
	b := make([]byte, size)
	_, _ = r.Read(b)
	copy(b, canary)
	return b
}

// postFile begins an upload whose content is what is written to the pipe.
func (s *stack) postFile(purpose string) (content *io.PipeWriter, answered chan answer) {
	s.t.Helper()
	r, w := io.Pipe()
	form := multipart.NewWriter(w)
	answered = make(chan answer, 1)
	body, content := io.Pipe()
	go func() {
		_ = form.WriteField("purpose", purpose)
		part, _ := form.CreateFormFile("file", "lines.jsonl")
		_, err := io.Copy(part, body)
		_ = body.CloseWithError(err)
		_ = form.Close()
		_ = w.Close()
	}()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.doors[0].url+"/v1/files", r)
	require.NoError(s.t, err)
	req.Header.Set("Authorization", "Bearer "+s.secret)
	req.Header.Set("Content-Type", form.FormDataContentType())
	go func() {
		resp, err := s.http.Do(req)
		if err != nil {
			close(answered)
			return
		}
		text, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		_ = r.CloseWithError(errors.New("answered"))
		answered <- answer{resp.StatusCode, resp.Header, string(text)}
	}()
	return content, answered
}

func TestFilesAreTheSameAtEveryIngress(t *testing.T) {
	s := start(t, func(o *options) {
		o.natsURL, o.database, o.ingresses = testkit.StartNATS(t).URL(), testkit.Postgres(t), 2
	})
	ctx, one := t.Context(), s.client()
	two := openai.NewClient(option.WithBaseURL(s.doors[1].url+"/v1"), option.WithAPIKey(s.secret), option.WithMaxRetries(0), option.WithHTTPClient(s.http))
	content := aFile(5_000_000)
	var ids []string
	for i := range 3 {
		f, err := one.Files.New(ctx, openai.FileNewParams{
			File: openai.File(bytes.NewReader(content[i:]), "lines.jsonl", "application/jsonl"), Purpose: openai.FilePurposeBatch,
			ExpiresAfter: openai.FileNewParamsExpiresAfter{Seconds: 3600},
		})
		require.NoError(t, err)
		require.EqualValues(t, len(content)-i, f.Bytes)
		require.Equal(t, f.CreatedAt+3600, f.ExpiresAt)
		ids = append(ids, f.ID)
	}
	pages := two.Files.ListAutoPaging(ctx, openai.FileListParams{Limit: openai.Int(2), Order: openai.FileListParamsOrderAsc})
	var listed []string
	for pages.Next() {
		listed = append(listed, pages.Current().ID)
	}
	require.NoError(t, pages.Err())
	require.Equal(t, ids, listed)

	resp, err := two.Files.Content(ctx, ids[1])
	require.NoError(t, err)
	got, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.True(t, bytes.Equal(content[1:], got))
	a := s.do(1, http.MethodGet, "/v1/files/"+ids[0]+"/content", "", "Range", "bytes=4000000-4000009")
	require.Equal(t, http.StatusPartialContent, a.status)
	require.Equal(t, string(content[4000000:4000010]), a.body)

	gone, err := two.Files.Delete(ctx, ids[1])
	require.NoError(t, err)
	require.True(t, gone.Deleted)
	_, err = one.Files.Get(ctx, ids[1])
	var refused *openai.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, http.StatusNotFound, refused.StatusCode)

	secret, _ := s.mint("stranger", func(k *store.Key) { k.Tenant = "red" })
	for _, path := range []string{"/v1/files/" + ids[0], "/v1/files/" + ids[0] + "/content"} {
		a := s.do(0, http.MethodGet, path, "", "Authorization", "Bearer "+secret)
		require.Equal(t, http.StatusNotFound, a.status)
		require.Equal(t, "not_found", s.fault(a.body).Code)
	}
}

func TestAnUploadWhoseQueueDies(t *testing.T) {
	nats := testkit.StartNATS(t)
	s := start(t, func(o *options) { o.natsURL = nats.URL() })
	content := aFile(2 << 20)
	in, answered := s.postFile("batch")
	_, err := in.Write(content)
	require.NoError(t, err)
	require.NoError(t, nats.Kill())
	_, err = in.Write(content)
	for err == nil { // until nobody reads it any more
		_, err = in.Write(content)
	}
	var a answer
	select {
	case a = <-answered:
	case <-time.After(patience):
		require.FailNow(t, "no answer")
	}
	require.Equal(t, http.StatusServiceUnavailable, a.status, a.body)
	require.Equal(t, "storage_unavailable", s.fault(a.body).Code)
	files, _, err := s.db.ListFiles(t.Context(), store.FileFilter{Tenant: tenant})
	require.NoError(t, err)
	require.Empty(t, files)

	require.NoError(t, nats.Start())
	client := s.client()
	s.eventually(func() bool {
		f, err := client.Files.New(t.Context(), openai.FileNewParams{File: openai.File(bytes.NewReader(content), "f", "application/jsonl"), Purpose: openai.FilePurposeBatch})
		return err == nil && f.Bytes == int64(len(content))
	}, "uploads go on")
}

func TestALargeFileTakesLittleMemory(t *testing.T) {
	s := start(t, func(o *options) { o.natsURL = testkit.StartNATS(t).URL() })
	const size, bound = 64 << 20, 24 << 20
	highest, from, stretch := uint64(0), rand.NewChaCha8([32]byte{}), make([]byte, 1<<20)
	look := func() {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		highest = max(highest, m.HeapAlloc)
	}
	look()
	base := highest
	in, answered := s.postFile("user_data")
	for i := range size / len(stretch) {
		_, _ = from.Read(stretch)
		_, err := in.Write(stretch)
		require.NoError(t, err)
		if i%8 == 7 {
			look()
		}
	}
	require.NoError(t, in.Close())
	a := <-answered
	require.Equal(t, http.StatusOK, a.status, a.body)
	var id string
	_, err := fmt.Sscanf(a.body, `{"id":%q`, &id)
	require.NoError(t, err)

	resp, err := s.send(t.Context(), http.MethodGet, s.doors[0].url+"/v1/files/"+id+"/content", "")
	require.NoError(t, err)
	defer resp.Body.Close()
	want := rand.NewChaCha8([32]byte{})
	for i := range size / len(stretch) {
		_, _ = want.Read(stretch)
		got := make([]byte, len(stretch))
		_, err := io.ReadFull(resp.Body, got)
		require.NoError(t, err)
		require.True(t, bytes.Equal(stretch, got))
		if i%8 == 7 {
			look()
		}
	}
	t.Logf("the heap grew by %d MiB at most", (highest-base)>>20)
	require.Less(t, highest-base, uint64(bound))
}

func TestAFileOfABatchHasABoundOfItsOwn(t *testing.T) {
	s := start(t, nil)
	in, answered := s.postFile("batch")
	var err error
	for err == nil { // until nobody reads it any more
		_, err = io.Copy(in, strings.NewReader(strings.Repeat("x", 1<<20)))
	}
	a := <-answered
	require.Equal(t, http.StatusRequestEntityTooLarge, a.status, a.body)
	require.Equal(t, "file", *s.fault(a.body).Param)
}
