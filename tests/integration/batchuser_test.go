package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/require"

	"sluice/tests/integration/conformance"
)

// batchUser does with batches what a program written for OpenAI does, with the official
// client, and holds every object that it is shown to OpenAI's description.
type batchUser struct {
	s       *stack
	api     openai.Client
	schemas *conformance.Schemas
}

// batchUser returns one with the stack's key, or with another.
func (s *stack) batchUser(secret ...string) *batchUser {
	s.t.Helper()
	schemas, err := conformance.Load()
	require.NoError(s.t, err)
	return &batchUser{s: s, schemas: schemas, api: openai.NewClient(
		option.WithBaseURL(s.doors[0].url+"/v1"), option.WithAPIKey(append(secret, s.secret)[0]),
		option.WithMaxRetries(0), option.WithHTTPClient(s.http),
	)}
}

// conforms holds a body to the object's description.
func (u *batchUser) conforms(object, body string) {
	u.s.t.Helper()
	require.NoError(u.s.t, u.schemas.Check(object, []byte(body)))
}

// upload stores the lines as the input of a batch.
func (u *batchUser) upload(lines ...string) *openai.FileObject {
	u.s.t.Helper()
	content := strings.Join(lines, "\n") + "\n"
	f, err := u.api.Files.New(u.s.t.Context(), openai.FileNewParams{
		File: openai.File(strings.NewReader(content), "lines.jsonl", "application/jsonl"), Purpose: openai.FilePurposeBatch,
	})
	require.NoError(u.s.t, err)
	u.conforms(conformance.File, f.RawJSON())
	return f
}

// create makes a batch of the lines.
func (u *batchUser) create(endpoint openai.BatchNewParamsEndpoint, lines ...string) *openai.Batch {
	u.s.t.Helper()
	b, err := u.api.Batches.New(u.s.t.Context(), openai.BatchNewParams{
		InputFileID: u.upload(lines...).ID, Endpoint: endpoint, CompletionWindow: openai.BatchNewParamsCompletionWindow24h,
		Metadata: map[string]string{"purpose": "nightly", "empty": ""},
	})
	require.NoError(u.s.t, err)
	u.conforms(conformance.Batch, b.RawJSON())
	return b
}

// get returns the batch as it is now.
func (u *batchUser) get(id string) *openai.Batch {
	u.s.t.Helper()
	b, err := u.api.Batches.Get(u.s.t.Context(), id)
	require.NoError(u.s.t, err)
	u.conforms(conformance.Batch, b.RawJSON())
	return b
}

// await polls the batch until the condition holds. What it counts must never become less.
func (u *batchUser) await(id, what string, reached func(*openai.Batch) bool) *openai.Batch {
	u.s.t.Helper()
	var last *openai.Batch
	u.s.eventually(func() bool {
		b := u.get(id)
		if last != nil {
			was, now := last.RequestCounts, b.RequestCounts
			require.True(u.s.t, now.Total >= was.Total && now.Completed >= was.Completed && now.Failed >= was.Failed,
				"counts became less: %s, then %s", was.RawJSON(), now.RawJSON())
		}
		last = b
		return reached(b)
	}, "batch %s is %s", id, what)
	return last
}

// awaitStatus polls the batch until it has the status.
func (u *batchUser) awaitStatus(id string, status openai.BatchStatus) *openai.Batch {
	u.s.t.Helper()
	return u.await(id, string(status), func(b *openai.Batch) bool {
		ended := b.Status == openai.BatchStatusFailed || b.Status == openai.BatchStatusCompleted ||
			b.Status == openai.BatchStatusExpired || b.Status == openai.BatchStatusCancelled
		require.True(u.s.t, b.Status == status || !ended, "it ended otherwise: %s", b.RawJSON())
		return b.Status == status
	})
}

// batchLine is one line of an output or error file.
type batchLine struct {
	ID       string `json:"id"`
	CustomID string `json:"custom_id"`
	Response *struct {
		StatusCode int             `json:"status_code"`
		RequestID  string          `json:"request_id"`
		Body       json.RawMessage `json:"body"`
	} `json:"response"`
	Error *struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

// file downloads an output or error file, of which there may be none, and returns its
// lines by custom_id. A second one of an id fails the test.
func (u *batchUser) file(id string) map[string]batchLine {
	u.s.t.Helper()
	if id == "" {
		return nil
	}
	f, err := u.api.Files.Get(u.s.t.Context(), id)
	require.NoError(u.s.t, err)
	u.conforms(conformance.File, f.RawJSON())
	require.Equal(u.s.t, openai.FileObjectPurposeBatchOutput, f.Purpose)
	resp, err := u.api.Files.Content(u.s.t.Context(), id)
	require.NoError(u.s.t, err)
	defer resp.Body.Close()
	lines, size := u.readLines(resp.Body)
	require.Equal(u.s.t, f.Bytes, size)
	require.NotEmpty(u.s.t, lines, "an empty file is none")
	return lines
}

// readLines reads lines of an output or error file, and how many bytes they are.
func (u *batchUser) readLines(from io.Reader) (lines map[string]batchLine, size int64) {
	u.s.t.Helper()
	lines = make(map[string]batchLine)
	for r := bufio.NewReader(from); ; {
		text, err := r.ReadString('\n')
		if text == "" {
			require.ErrorIs(u.s.t, err, io.EOF)
			return lines, size
		}
		require.NoError(u.s.t, err, "a line that does not end: %s", text)
		size += int64(len(text))
		u.conforms(conformance.BatchLine, text)
		var l batchLine
		require.NoError(u.s.t, json.Unmarshal([]byte(text), &l))
		require.NotContains(u.s.t, lines, l.CustomID, "a second line of one custom_id")
		lines[l.CustomID] = l
	}
}

// requireOneEach downloads both files of a batch that has ended, and requires that each
// custom_id is in exactly one of them and that the batch counts them so.
func (u *batchUser) requireOneEach(b *openai.Batch, ids []string) (output, errors map[string]batchLine) {
	u.s.t.Helper()
	output, errors = u.file(b.OutputFileID), u.file(b.ErrorFileID)
	for _, id := range ids {
		_, good := output[id]
		_, bad := errors[id]
		require.NotEqual(u.s.t, good, bad, "%s is in one of the files", id)
	}
	require.Len(u.s.t, ids, len(output)+len(errors))
	require.EqualValues(u.s.t, len(ids), b.RequestCounts.Total)
	require.EqualValues(u.s.t, len(output), b.RequestCounts.Completed)
	require.EqualValues(u.s.t, len(errors), b.RequestCounts.Failed)
	for id, l := range output {
		require.NotNil(u.s.t, l.Response, id)
		require.Equal(u.s.t, 200, l.Response.StatusCode, id)
		require.Nil(u.s.t, l.Error, id)
	}
	return output, errors
}

// chatLine is a line of a batch that asks for a chat completion.
func chatLine(id, model, prompt, more string) string {
	return fmt.Sprintf(`{"custom_id":%q,"method":"POST","url":"/v1/chat/completions","body":{"model":%q,"messages":[{"role":"user","content":%q}]%s}}`, id, model, prompt, more)
}

// embeddingLine is a line of a batch that asks for an embedding.
func embeddingLine(id, model, input, more string) string {
	return fmt.Sprintf(`{"custom_id":%q,"method":"POST","url":"/v1/embeddings","body":{"model":%q,"input":%q%s}}`, id, model, input, more)
}
