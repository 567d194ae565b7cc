package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/require"
)

// client speaks to one address, with the official client where an answer is
// expected and by hand where a test looks at the wire.
type client struct {
	base string // without /v1
	key  string
	http *http.Client
	api  openai.Client
}

func newClient(t testing.TB, address, key string) client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return clientOver(transport, address, key)
}

func clientOver(transport *http.Transport, address, key string) client {
	c := client{base: "http://" + address, key: key, http: &http.Client{Transport: transport}}
	c.api = openai.NewClient(option.WithBaseURL(c.base+"/v1"), option.WithAPIKey(key),
		option.WithHTTPClient(c.http), option.WithMaxRetries(0))
	return c
}

func params(model, prompt string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(prompt)},
	}
}

func requestID(id string) option.RequestOption { return option.WithHeader("X-Request-Id", id) }

// ask makes a plain call and returns the answer's text.
func (c client) ask(ctx context.Context, prompt string, opts ...option.RequestOption) (string, error) {
	answer, err := c.api.Chat.Completions.New(ctx, params(clusterModel, prompt), opts...)
	if err != nil {
		return "", err
	}
	if len(answer.Choices) != 1 {
		return "", fmt.Errorf("%d choices, want 1", len(answer.Choices))
	}
	return answer.Choices[0].Message.Content, nil
}

// askStream makes a streamed call and returns the text that came, also when it ends
// with an error.
func (c client) askStream(ctx context.Context, prompt string, opts ...option.RequestOption) (string, error) {
	s := c.api.Chat.Completions.NewStreaming(ctx, params(clusterModel, prompt), opts...)
	defer func() { _ = s.Close() }() // nothing more is read
	var text strings.Builder
	for s.Next() {
		for _, choice := range s.Current().Choices {
			text.WriteString(choice.Delta.Content)
		}
	}
	return text.String(), s.Err()
}

// statusOf returns the HTTP status of the client's error, or zero if it is of another
// kind.
func statusOf(err error) int {
	if api, ok := errors.AsType[*openai.Error](err); ok {
		return api.StatusCode
	}
	return 0
}

// post sends a chat completion by hand.
func (c client) post(ctx context.Context, body string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	return c.do(req, header)
}

func (c client) do(req *http.Request, header http.Header) (*http.Response, error) {
	maps.Copy(req.Header, header)
	req.Header.Set("Authorization", "Bearer "+c.key)
	req.Header.Set("Content-Type", "application/json")
	return c.http.Do(req)
}

// drop reads a response to its end and returns its status.
func drop(resp *http.Response) int {
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func chatBody(model string, stream bool, prompt string) string {
	return fmt.Sprintf(`{"model":%q,"stream":%t,"messages":[{"role":"user","content":%q}]}`, model, stream, prompt)
}

// event is one frame of a streamed answer.
type event struct {
	id, data string
}

// done reports whether this is the end of a whole answer.
func (e event) done() bool { return e.data == "[DONE]" }

// text is what the frame adds to the answer.
func (e event) text() string {
	var chunk openai.ChatCompletionChunk
	if json.Unmarshal([]byte(e.data), &chunk) != nil || len(chunk.Choices) == 0 {
		return ""
	}
	return chunk.Choices[0].Delta.Content
}

// errorCode is the code of a frame that carries an error, or empty.
func (e event) errorCode() string {
	var body struct {
		Error *struct {
			Code string `json:"code"`
		} `json:"error"`
	}
	if json.Unmarshal([]byte(e.data), &body) != nil || body.Error == nil {
		return ""
	}
	return body.Error.Code
}

// stream reads the frames of a streamed answer.
type stream struct {
	t        *testing.T
	resp     *http.Response
	lines    *bufio.Scanner
	comments int
}

// openStream begins a streamed answer.
func (c client) openStream(t *testing.T, model, prompt string, header http.Header) *stream {
	t.Helper()
	resp, err := c.post(t.Context(), chatBody(model, true, prompt), header)
	require.NoError(t, err)
	return newStream(t, resp)
}

// resume continues a streamed answer behind the frame of the id.
func (c client) resume(t *testing.T, job, lastID string) *stream {
	t.Helper()
	return newStream(t, c.resumeRaw(t, job, lastID))
}

func (c client) resumeRaw(t *testing.T, job, lastID string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.base+"/v1/chat/completions/"+job+"/events", nil)
	require.NoError(t, err)
	header := http.Header{}
	if lastID != "" {
		header.Set("Last-Event-ID", lastID)
	}
	resp, err := c.do(req, header)
	require.NoError(t, err)
	return resp
}

func newStream(t *testing.T, resp *http.Response) *stream {
	t.Helper()
	s := &stream{t: t, resp: resp, lines: bufio.NewScanner(resp.Body)}
	t.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		require.Equal(t, http.StatusOK, resp.StatusCode, "%s", body)
	}
	return s
}

func (s *stream) job() string { return s.resp.Header.Get("X-Sluice-Job-Id") }

// next returns the next frame. ok is false when the connection has ended.
func (s *stream) next() (e event, ok bool) {
	for s.lines.Scan() {
		switch line := s.lines.Text(); {
		case line == "":
			if e.data != "" {
				return e, true
			}
		case strings.HasPrefix(line, ":"):
			s.comments++
		case strings.HasPrefix(line, "id: "):
			e.id = line[len("id: "):]
		case strings.HasPrefix(line, "data: "):
			e.data = line[len("data: "):]
		}
	}
	return event{}, false
}

// until returns the frames up to the first that holds text.
func (s *stream) until(text string) []event {
	s.t.Helper()
	var events []event
	for {
		e, ok := s.next()
		require.True(s.t, ok, "the stream ended before %q", text)
		events = append(events, e)
		if e.text() == text {
			return events
		}
	}
}

// rest returns all frames up to the end of the connection.
func (s *stream) rest() []event {
	var events []event
	for {
		e, ok := s.next()
		if !ok {
			return events
		}
		events = append(events, e)
	}
}

// texts joins what the frames add to the answer.
func texts(events []event) string {
	var b strings.Builder
	for _, e := range events {
		b.WriteString(e.text())
	}
	return b.String()
}

// as returns the client with another key.
func (c client) as(key string) client {
	transport, _ := c.http.Transport.(*http.Transport)
	return clientOver(transport, strings.TrimPrefix(c.base, "http://"), strings.TrimSpace(key))
}
