package openaiapi

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"sluice/internal/inference"
)

// Bounds of the time that a batch is given. OpenAI knows 24 hours alone.
const (
	MinWindow = 10 * time.Minute
	MaxWindow = 7 * 24 * time.Hour
)

// CreateBatch is the body of POST /v1/batches.
type CreateBatch struct {
	InputFile     string
	Endpoint      string
	Window        time.Duration
	Metadata      map[string]string // nil when there is none
	OutputExpires time.Duration     // after the output's making; zero when nothing is said
}

// ParseCreateBatch checks the body of POST /v1/batches. The error is always an
// *inference.Error that names the field at fault. Fields that are not known are passed
// over, as OpenAI does.
func ParseCreateBatch(body []byte) (CreateBatch, error) {
	if err := checkBody(body); err != nil {
		return CreateBatch{}, err
	}
	root := rootOf(body)
	if !root.isObject() {
		return CreateBatch{}, invalid("", "the request body must be a JSON object")
	}
	var f [batchMembers]value
	if err := collect(root, batchMember, f[:], nil); err != nil {
		return CreateBatch{}, err
	}
	var c CreateBatch
	var err error
	if c.InputFile, err = requiredText(f[inInputFile], "input_file_id"); err != nil {
		return CreateBatch{}, err
	}
	if c.Endpoint, err = requiredText(f[inEndpoint], "endpoint"); err != nil {
		return CreateBatch{}, err
	}
	if c.Endpoint != EndpointChat && c.Endpoint != EndpointEmbeddings {
		return CreateBatch{}, invalid("endpoint", "endpoint must be %s or %s", EndpointChat, EndpointEmbeddings)
	}
	window, err := requiredText(f[inWindow], "completion_window")
	if err != nil {
		return CreateBatch{}, err
	}
	if c.Window, err = parseWindow(window); err != nil {
		return CreateBatch{}, err
	}
	if c.Metadata, err = strictMetadata(f[inBatchMetadata]); err != nil {
		return CreateBatch{}, err
	}
	c.OutputExpires, err = parseOutputExpiry(f[inOutputExpiry])
	return c, err
}

// The members of a request for a batch.
const (
	inInputFile = iota
	inEndpoint
	inWindow
	inBatchMetadata
	inOutputExpiry
	batchMembers
)

func batchMember(name []byte) (string, int) {
	switch string(name) {
	case "input_file_id":
		return "input_file_id", inInputFile
	case "endpoint":
		return "endpoint", inEndpoint
	case "completion_window":
		return "completion_window", inWindow
	case "metadata":
		return "metadata", inBatchMetadata
	case "output_expires_after":
		return "output_expires_after", inOutputExpiry
	}
	return "", -1
}

func requiredText(v value, name string) (string, error) {
	if v.absent() {
		return "", invalid(name, "%s is missing", name)
	}
	s, ok := v.text()
	if !ok || s == "" || len(s) > MaxModelBytes {
		return "", invalid(name, "%s must be a string of 1 to %d bytes", name, MaxModelBytes)
	}
	return s, nil
}

// parseWindow reads a duration such as "24h", "90m" or "7d".
func parseWindow(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if days, isDays := strings.CutSuffix(text, "d"); isDays {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 8)
		d = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || d < MinWindow || d > MaxWindow {
		return 0, invalid("completion_window", `completion_window must be a duration from "10m" to "7d", such as "24h"`)
	}
	return d.Truncate(time.Second), nil
}

// WindowText is a batch's window as the API shows it: in hours if these are whole, as
// OpenAI's only one is.
func WindowText(d time.Duration) string {
	switch {
	case d%time.Hour == 0:
		return strconv.FormatInt(int64(d/time.Hour), 10) + "h"
	case d%time.Minute == 0:
		return strconv.FormatInt(int64(d/time.Minute), 10) + "m"
	}
	return strconv.FormatInt(int64(d/time.Second), 10) + "s"
}

// strictMetadata reads metadata that is ours to keep: what would not be kept whole is
// refused.
func strictMetadata(v value) (map[string]string, error) {
	if v.absent() {
		return nil, nil
	}
	if !v.isObject() {
		return nil, invalid("metadata", "metadata must be an object")
	}
	var found map[string]string
	it := walk(v)
	for m, ok := it.member(); ok; m, ok = it.member() {
		key, keyOK := quotedKey(v, m).text()
		text, textOK := m.val.text()
		_, twice := found[key]
		switch {
		case !keyOK || utf8.RuneCountInString(key) > maxMetadataKey:
			return nil, invalid("metadata", "a key of metadata must be at most %d characters long", maxMetadataKey)
		case !textOK || utf8.RuneCountInString(text) > maxMetadataValue:
			return nil, invalid("metadata", "a value of metadata must be a string of at most %d characters", maxMetadataValue)
		case twice:
			return nil, invalid("metadata", "metadata has a key more than once")
		case len(found) == MaxMetadata:
			return nil, invalid("metadata", "metadata must have at most %d pairs", MaxMetadata)
		case found == nil:
			found = make(map[string]string)
		}
		found[key] = text
	}
	return found, nil
}

func parseOutputExpiry(v value) (time.Duration, error) {
	if v.absent() {
		return 0, nil
	}
	seconds, ok := integer(v.field("seconds"))
	switch {
	case !v.isObject():
		return 0, invalid("output_expires_after", "output_expires_after must be an object")
	case !v.field("anchor").is(ExpiryAnchor):
		return 0, invalid("output_expires_after.anchor", "output_expires_after.anchor must be %s", ExpiryAnchor)
	case !ok || seconds < MinExpirySeconds || seconds > MaxExpirySeconds:
		return 0, invalid("output_expires_after.seconds", "output_expires_after.seconds must be from %d to %d", MinExpirySeconds, MaxExpirySeconds)
	}
	return time.Duration(seconds) * time.Second, nil
}

// BatchFault is one entry of a batch's errors.
type BatchFault struct {
	Code    string
	Message string
	Param   string // null on the wire when empty
	Line    int    // counted from 1; null on the wire when zero
}

// MarshalJSON encodes the fault as OpenAI does.
func (f BatchFault) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Code    string  `json:"code"`
		Message string  `json:"message"`
		Param   *string `json:"param"`
		Line    *int    `json:"line"`
	}{f.Code, f.Message, orNull(f.Param), orNull(f.Line)})
}

// orNull returns nil, which is null on the wire, for what is not there.
func orNull[T comparable](v T) *T {
	if v == *new(T) {
		return nil
	}
	return &v
}

// Batch is a batch as the API shows it. Times are in Unix seconds, zero for what has not
// come to pass.
type Batch struct {
	ID, Endpoint, Model, InputFile, Status string
	Window                                 time.Duration
	OutputFile, ErrorFile                  string
	CreatedAt, InProgressAt, ExpiresAt     int64
	FinalizingAt, CompletedAt, FailedAt    int64
	ExpiredAt, CancellingAt, CancelledAt   int64
	Total, Completed, Failed               int
	Usage                                  inference.Usage
	Metadata                               map[string]string
	Faults                                 []BatchFault
}

type batchJSON struct {
	ID           string            `json:"id"`
	Object       string            `json:"object"`
	Endpoint     string            `json:"endpoint"`
	Model        string            `json:"model,omitempty"`
	Errors       *batchFaults      `json:"errors"`
	InputFile    string            `json:"input_file_id"`
	Window       string            `json:"completion_window"`
	Status       string            `json:"status"`
	OutputFile   *string           `json:"output_file_id"`
	ErrorFile    *string           `json:"error_file_id"`
	CreatedAt    int64             `json:"created_at"`
	InProgressAt *int64            `json:"in_progress_at"`
	ExpiresAt    *int64            `json:"expires_at"`
	FinalizingAt *int64            `json:"finalizing_at"`
	CompletedAt  *int64            `json:"completed_at"`
	FailedAt     *int64            `json:"failed_at"`
	ExpiredAt    *int64            `json:"expired_at"`
	CancellingAt *int64            `json:"cancelling_at"`
	CancelledAt  *int64            `json:"cancelled_at"`
	Counts       batchCounts       `json:"request_counts"`
	Usage        batchUsage        `json:"usage"`
	Metadata     map[string]string `json:"metadata"`
}

type batchFaults struct {
	Object string       `json:"object"`
	Data   []BatchFault `json:"data"`
}

type batchCounts struct {
	Total     int `json:"total"`
	Completed int `json:"completed"`
	Failed    int `json:"failed"`
}

type batchUsage struct {
	Input        int64 `json:"input_tokens"`
	InputDetails struct {
		Cached int64 `json:"cached_tokens"`
	} `json:"input_tokens_details"`
	Output        int64 `json:"output_tokens"`
	OutputDetails struct {
		Reasoning int64 `json:"reasoning_tokens"`
	} `json:"output_tokens_details"`
	Total int64 `json:"total_tokens"`
}

// MarshalJSON encodes the batch as OpenAI does; ids, times and errors that are not there
// are null.
func (b Batch) MarshalJSON() ([]byte, error) {
	o := batchJSON{
		ID: b.ID, Object: "batch", Endpoint: b.Endpoint, Model: b.Model, InputFile: b.InputFile,
		Window: WindowText(b.Window), Status: b.Status, OutputFile: orNull(b.OutputFile), ErrorFile: orNull(b.ErrorFile),
		CreatedAt: b.CreatedAt, InProgressAt: orNull(b.InProgressAt), ExpiresAt: orNull(b.ExpiresAt),
		FinalizingAt: orNull(b.FinalizingAt), CompletedAt: orNull(b.CompletedAt), FailedAt: orNull(b.FailedAt),
		ExpiredAt: orNull(b.ExpiredAt), CancellingAt: orNull(b.CancellingAt), CancelledAt: orNull(b.CancelledAt),
		Counts: batchCounts{b.Total, b.Completed, b.Failed}, Metadata: b.Metadata,
	}
	if len(b.Faults) > 0 {
		o.Errors = &batchFaults{"list", b.Faults}
	}
	o.Usage.Input, o.Usage.Output = b.Usage.PromptTokens, b.Usage.CompletionTokens
	o.Usage.InputDetails.Cached, o.Usage.OutputDetails.Reasoning = b.Usage.CachedTokens, b.Usage.ReasoningTokens
	o.Usage.Total = b.Usage.PromptTokens + b.Usage.CompletionTokens
	data, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode batch %s: %w", b.ID, err)
	}
	return data, nil
}

// BatchList is one page of GET /v1/batches.
type BatchList struct {
	Data    []Batch
	HasMore bool
}

// MarshalJSON encodes the page as OpenAI does; an empty one has [] and null ids.
func (l BatchList) MarshalJSON() ([]byte, error) {
	page := struct {
		Object  string  `json:"object"`
		Data    []Batch `json:"data"`
		FirstID *string `json:"first_id"`
		LastID  *string `json:"last_id"`
		HasMore bool    `json:"has_more"`
	}{Object: "list", Data: []Batch{}, HasMore: l.HasMore}
	if n := len(l.Data); n > 0 {
		page.Data, page.FirstID, page.LastID = l.Data, &l.Data[0].ID, &l.Data[n-1].ID
	}
	return json.Marshal(page)
}
