package openaiapi

import "encoding/json"

// The purposes of a file.
const (
	PurposeAssistants  = "assistants"
	PurposeBatch       = "batch"
	PurposeBatchOutput = "batch_output" // of files that Sluice makes; nobody uploads one
	PurposeFineTune    = "fine-tune"
	PurposeVision      = "vision"
	PurposeUserData    = "user_data"
	PurposeEvals       = "evals"
)

// UploadPurposes are the purposes that an upload may have.
func UploadPurposes() []string {
	return []string{PurposeAssistants, PurposeBatch, PurposeEvals, PurposeFineTune, PurposeUserData, PurposeVision}
}

// Bounds of expires_after, in seconds.
const (
	MinExpirySeconds = 3600
	MaxExpirySeconds = 2_592_000
)

// ExpiryAnchor is the one event that expires_after counts from.
const ExpiryAnchor = "created_at"

// File is a file as the API shows it.
type File struct {
	ID        string
	Bytes     int64
	CreatedAt int64 // Unix time in seconds
	ExpiresAt int64 // the same; zero: never
	Filename  string
	Purpose   string
}

type fileJSON struct {
	ID        string `json:"id"`
	Object    string `json:"object"`
	Bytes     int64  `json:"bytes"`
	CreatedAt int64  `json:"created_at"`
	ExpiresAt int64  `json:"expires_at,omitempty"`
	Filename  string `json:"filename"`
	Purpose   string `json:"purpose"`
	Status    string `json:"status"`
}

// MarshalJSON encodes the file as OpenAI does. Its status is deprecated and required: a
// file that can be seen is whole.
func (f File) MarshalJSON() ([]byte, error) {
	return json.Marshal(fileJSON{
		ID: f.ID, Object: "file", Bytes: f.Bytes, CreatedAt: f.CreatedAt, ExpiresAt: f.ExpiresAt,
		Filename: f.Filename, Purpose: f.Purpose, Status: "processed",
	})
}

// FileList is one page of GET /v1/files.
type FileList struct {
	Data    []File
	HasMore bool
}

// MarshalJSON encodes the page as OpenAI does; an empty one has [] and empty ids.
func (l FileList) MarshalJSON() ([]byte, error) {
	page := struct {
		Object  string `json:"object"`
		Data    []File `json:"data"`
		FirstID string `json:"first_id"`
		LastID  string `json:"last_id"`
		HasMore bool   `json:"has_more"`
	}{Object: "list", Data: []File{}, HasMore: l.HasMore}
	if n := len(l.Data); n > 0 {
		page.Data, page.FirstID, page.LastID = l.Data, l.Data[0].ID, l.Data[n-1].ID
	}
	return json.Marshal(page)
}

// FileDeleted is the answer of DELETE /v1/files/{id}.
type FileDeleted struct{ ID string }

// MarshalJSON encodes the answer as OpenAI does.
func (d FileDeleted) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		ID      string `json:"id"`
		Object  string `json:"object"`
		Deleted bool   `json:"deleted"`
	}{d.ID, "file", true})
}
