package openaiapi

import (
	"bytes"
	"encoding/json"

	"sluice/internal/inference"
)

// The paths of the endpoints, as jobs and batches name them.
const (
	EndpointChat       = "/v1/chat/completions"
	EndpointEmbeddings = "/v1/embeddings"
)

// EndpointOf returns the path that requests of that kind are sent to.
func EndpointOf(kind inference.Kind) string {
	if kind == inference.KindEmbeddings {
		return EndpointEmbeddings
	}
	return EndpointChat
}

// Job is a request that is answered later, as the API shows it. It is Sluice's own object,
// in the manner of OpenAI's.
type Job struct {
	ID         string            `json:"id"`
	Object     string            `json:"object"`
	CreatedAt  int64             `json:"created_at"` // Unix time in seconds, as are all of them
	Status     string            `json:"status"`     // queued, in_progress, completed, failed, cancelled or expired
	Model      string            `json:"model"`
	Endpoint   string            `json:"endpoint"`
	Metadata   map[string]string `json:"metadata"`
	StartedAt  *int64            `json:"started_at"`
	FinishedAt *int64            `json:"finished_at"`
	ExpiresAt  *int64            `json:"expires_at"` // when the job and its answer go; null before its end
	Attempts   int               `json:"attempts"`
	Provider   *string           `json:"provider"`
	Usage      *JobUsage         `json:"usage"`
	Error      *JobError         `json:"error"`

	// Response is the answer, of a job that has one; a list shows jobs without it.
	Response *JobResponse `json:"response,omitempty"`
}

// JobResponse is an answer as an output line of a batch has it.
type JobResponse struct {
	StatusCode int             `json:"status_code"`
	RequestID  string          `json:"request_id"`
	Body       json.RawMessage `json:"body"`
}

// JobError says why a job has no good answer.
type JobError struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Code    string  `json:"code"`
	Param   *string `json:"param"`
}

// JobUsage counts tokens as an answer does.
type JobUsage struct {
	PromptTokens     int64 `json:"prompt_tokens"`
	CompletionTokens int64 `json:"completion_tokens"`
	TotalTokens      int64 `json:"total_tokens"`
	PromptDetails    struct {
		CachedTokens int64 `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
	CompletionDetails struct {
		ReasoningTokens int64 `json:"reasoning_tokens"`
	} `json:"completion_tokens_details"`
}

// NewJobUsage returns the counts as the API shows them, or nil when nobody knows them.
func NewJobUsage(u inference.Usage) *JobUsage {
	if !u.Known {
		return nil
	}
	shown := &JobUsage{
		PromptTokens: u.PromptTokens, CompletionTokens: u.CompletionTokens, TotalTokens: u.PromptTokens + u.CompletionTokens,
	}
	shown.PromptDetails.CachedTokens = u.CachedTokens
	shown.CompletionDetails.ReasoningTokens = u.ReasoningTokens
	return shown
}

// JobList is one page of GET /v1/jobs.
type JobList struct {
	Data    []Job
	HasMore bool
}

// MarshalJSON encodes the page as OpenAI does its own; an empty one has [] and null ids.
func (l JobList) MarshalJSON() ([]byte, error) {
	page := struct {
		Object  string  `json:"object"`
		Data    []Job   `json:"data"`
		FirstID *string `json:"first_id"`
		LastID  *string `json:"last_id"`
		HasMore bool    `json:"has_more"`
	}{Object: "list", Data: []Job{}, HasMore: l.HasMore}
	if n := len(l.Data); n > 0 {
		page.Data, page.FirstID, page.LastID = l.Data, &l.Data[0].ID, &l.Data[n-1].ID
	}
	return json.Marshal(page)
}

// webhookMember is the entry of a request's metadata that is Sluice's own.
const webhookMember = "webhook"

// TakeWebhook returns the request's body without metadata.webhook, and that entry's JSON:
// the text of a string, or the value itself. The entry is Sluice's, and an address may hold
// a receiver's token, so it goes to no provider; metadata that held nothing else goes with
// it. Without such an entry the body comes back as it is, and no JSON. The body must have
// been checked.
func TakeWebhook(body []byte) (rest, hook []byte, err error) {
	metadata, ok := topLevel(body, "metadata")
	if !ok || !metadata.val.isObject() {
		return body, nil, nil
	}
	var found []member
	others := 0
	it := walk(metadata.val)
	for m, ok := it.member(); ok; m, ok = it.member() {
		if sameKey(m.key, webhookMember) {
			found = append(found, m)
		} else {
			others++
		}
	}
	switch {
	case len(found) == 0:
		return body, nil, nil
	case len(found) > 1:
		return nil, nil, invalid("metadata.webhook", "metadata.webhook is given more than once")
	}
	hook = found[0].val
	if text, ok := found[0].val.text(); ok {
		hook = []byte(text)
	}
	if others == 0 {
		return cutMember(body, metadata), hook, nil
	}
	object := cutMember(metadata.val, found[0])
	return splice(body, metadata.end-len(metadata.val), metadata.end, object), hook, nil
}

// Unstreamed returns the request's body as one for a whole answer: without stream, and
// without stream_options, which mean nothing then. The body must have been checked.
func Unstreamed(body []byte) []byte {
	for _, name := range []string{"stream", "stream_options"} {
		if m, ok := topLevel(body, name); ok {
			body = cutMember(body, m)
		}
	}
	return body
}

// cutMember returns a copy of the object without the member, and without the comma that
// set it apart.
func cutMember(object []byte, m member) []byte {
	start, end := m.start, skipSpace(object, m.end)
	if end < len(object) && object[end] == ',' {
		return splice(object, start, skipSpace(object, end+1), nil)
	}
	before := bytes.TrimRight(object[:start], " \t\r\n")
	return splice(object, len(bytes.TrimSuffix(before, []byte(","))), m.end, nil)
}
