package e2e_test

import (
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/stretchr/testify/require"
)

// The official client does with files what it does at OpenAI, and files outlive the
// process.
func TestFilesWithTheOfficialClient(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), t.Context()
	p := serving(t, dir)
	key := firstKey(t, p)
	api := newClient(t, p.address(), key).api
	content := strings.Repeat(`{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{}}`+"\n", 30_000)
	made, err := api.Files.New(ctx, openai.FileNewParams{
		File: openai.File(strings.NewReader(content), "lines.jsonl", "application/jsonl"), Purpose: openai.FilePurposeBatch,
		ExpiresAfter: openai.FileNewParamsExpiresAfter{Seconds: 86400},
	})
	require.NoError(t, err)
	require.EqualValues(t, len(content), made.Bytes)
	require.Equal(t, "lines.jsonl", made.Filename)
	require.Equal(t, openai.FileObjectPurposeBatch, made.Purpose)
	require.Equal(t, made.CreatedAt+86400, made.ExpiresAt)

	p.kill()
	p = serving(t, dir)
	api = newClient(t, p.address(), key).api
	page, err := api.Files.List(ctx, openai.FileListParams{Purpose: openai.String("batch")})
	require.NoError(t, err)
	require.Len(t, page.Data, 1)
	require.False(t, page.HasMore)
	found, err := api.Files.Get(ctx, made.ID)
	require.NoError(t, err)
	require.Equal(t, page.Data[0].ID, found.ID)
	require.Equal(t, made.CreatedAt, found.CreatedAt)
	resp, err := api.Files.Content(ctx, made.ID)
	require.NoError(t, err)
	got, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, content, string(got))

	gone, err := api.Files.Delete(ctx, made.ID)
	require.NoError(t, err)
	require.True(t, gone.Deleted)
	_, err = api.Files.Content(ctx, made.ID)
	require.Equal(t, http.StatusNotFound, statusOf(err))
	p.signal(syscall.SIGTERM)
	require.Zero(t, p.wait())
}
