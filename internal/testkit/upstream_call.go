package testkit

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Call is one request that an Upstream's script answers. Its methods are for the
// script's goroutine.
type Call struct {
	Request

	N int // 1 for the upstream's first request

	w       http.ResponseWriter
	gone    <-chan struct{}
	closed  <-chan struct{}
	started bool
	asked   struct {
		Model         string `json:"model"`
		Stream        bool   `json:"stream"`
		StreamOptions struct {
			IncludeUsage bool `json:"include_usage"`
		} `json:"stream_options"`
	}
}

// Model returns the model that the request asks for.
func (c *Call) Model() string { return c.asked.Model }

// Streamed reports whether the request asks for a streamed answer: in its body, or by
// the type that it accepts where the upstream's format has no place for it there.
func (c *Call) Streamed() bool {
	return c.asked.Stream || c.Header.Get("Accept") == "text/event-stream"
}

// WantsUsage reports whether the request asks for the usage chunk of a stream.
func (c *Call) WantsUsage() bool { return c.asked.StreamOptions.IncludeUsage }

// Disconnected is closed once the client has gone away.
func (c *Call) Disconnected() <-chan struct{} { return c.gone }

// SetHeader sets a header of the answer, before anything is written.
func (c *Call) SetHeader(name, value string) { c.w.Header().Set(name, value) }

// JSON answers with a status and a JSON body, byte for byte.
func (c *Call) JSON(status int, body string) {
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(status)
	c.Raw(body)
}

// Fail answers with a status and an error in OpenAI's shape.
func (c *Call) Fail(status int, message string) {
	c.JSON(status, fmt.Sprintf(`{"error":{"message":%s,"type":"scripted","param":null,"code":null}}`, quote(message)))
}

// Raw writes bytes as they are and sends them off at once.
func (c *Call) Raw(text string) {
	// A client that has gone is what many scripts are about, so it is no failure here.
	_, _ = c.w.Write([]byte(text))
	_ = http.NewResponseController(c.w).Flush()
}

// Stream sends the head of a streamed answer. Chunk does it too, when it has not
// been done.
func (c *Call) Stream() {
	if c.started {
		return
	}
	c.started = true
	c.w.Header().Set("Content-Type", "text/event-stream")
	c.w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(c.w).Flush()
}

// Chunk sends one event with this data, which holds no line break.
func (c *Call) Chunk(data string) {
	c.Stream()
	c.Raw("data: " + data + "\n\n")
}

// Comment sends a comment.
func (c *Call) Comment(text string) {
	c.Stream()
	c.Raw(": " + text + "\n\n")
}

// Delta sends a chunk that adds text to the first choice.
func (c *Call) Delta(text string) {
	c.Chunk(c.chunk(`{"index":0,"delta":{"content":` + quote(text) + `},"logprobs":null,"finish_reason":null}`))
}

// Finish sends the chunk that ends the first choice.
func (c *Call) Finish(reason string) {
	c.Chunk(c.chunk(`{"index":0,"delta":{},"logprobs":null,"finish_reason":` + quote(reason) + `}`))
}

// Usage sends the usage chunk.
func (c *Call) Usage(prompt, completion int) {
	c.Chunk(strings.TrimSuffix(c.chunk(""), "}") + `,"usage":` + usageJSON(prompt, completion) + `}`)
}

// Done sends the event that ends a streamed answer.
func (c *Call) Done() { c.Chunk("[DONE]") }

// Reply gives a whole answer of these tokens, streamed or plain, as the request
// asks. Each token is one chunk; the usage counts 7 prompt tokens and one completion
// token for each.
func (c *Call) Reply(tokens ...string) {
	if !c.Streamed() {
		c.JSON(http.StatusOK, Completion(c.Model(), strings.Join(tokens, ""), 7, len(tokens)))
		return
	}
	c.Chunk(c.chunk(`{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}`))
	for _, token := range tokens {
		c.Delta(token)
	}
	c.Finish("stop")
	if c.WantsUsage() {
		c.Usage(7, len(tokens))
	}
	c.Done()
}

// Wait holds the answer back until the gate opens: a value, or the channel closed.
// It reports false when the client went away or the test ended first.
func (c *Call) Wait(gate <-chan struct{}) bool {
	select {
	case <-gate:
		return true
	case <-c.gone:
	case <-c.closed:
	}
	return false
}

// Pause waits for a while. It reports false when the client went away or the test
// ended first.
func (c *Call) Pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.gone:
	case <-c.closed:
	}
	return false
}

// Hang answers nothing until the client goes away or the test ends.
func (c *Call) Hang() { c.Wait(nil) }

// Cut closes the connection in the middle of the answer. The script writes nothing
// after it.
func (c *Call) Cut() {
	conn, _, err := http.NewResponseController(c.w).Hijack()
	if err == nil {
		_ = conn.Close()
	}
}

// chunk wraps choices into a chunk as OpenAI sends it: with a null usage when usage
// was asked for.
func (c *Call) chunk(choices string) string {
	text := fmt.Sprintf(`{"id":"chatcmpl-%d","object":"chat.completion.chunk","created":1700000000,"model":%s,"choices":[%s]`,
		c.N, quote(c.Model()), choices)
	if c.WantsUsage() && choices != "" {
		text += `,"usage":null`
	}
	return text + "}"
}

func (c *Call) listModels(ids []string) {
	entries := make([]string, 0, len(ids))
	for _, id := range ids {
		entries = append(entries, `{"id":`+quote(id)+`,"object":"model","created":1700000000,"owned_by":"scripted"}`)
	}
	c.JSON(http.StatusOK, `{"object":"list","data":[`+strings.Join(entries, ",")+`]}`)
}

// Completion returns a plain chat completion's JSON.
func Completion(model, text string, promptTokens, completionTokens int) string {
	return fmt.Sprintf(`{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":%s,`+
		`"choices":[{"index":0,"message":{"role":"assistant","content":%s,"refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":%s}`,
		quote(model), quote(text), usageJSON(promptTokens, completionTokens))
}

func usageJSON(prompt, completion int) string {
	return fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}`, prompt, completion, prompt+completion)
}

// quote encodes a string as JSON, which cannot fail for one.
func quote(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		return `""`
	}
	return string(text)
}
