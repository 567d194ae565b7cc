package openaiapi

import "encoding/json"

// Model is one entry of GET /v1/models.
type Model struct {
	ID      string
	Created int64 // Unix time in seconds
	OwnedBy string
}

type modelJSON struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

// MarshalJSON encodes the model as OpenAI does.
func (m Model) MarshalJSON() ([]byte, error) {
	return json.Marshal(modelJSON{ID: m.ID, Object: "model", Created: m.Created, OwnedBy: m.OwnedBy})
}

// ModelList is the answer of GET /v1/models.
type ModelList struct {
	Data []Model
}

// MarshalJSON encodes the list as OpenAI does; an empty list is [], never null.
func (l ModelList) MarshalJSON() ([]byte, error) {
	data := l.Data
	if data == nil {
		data = []Model{}
	}
	return json.Marshal(struct {
		Object string  `json:"object"`
		Data   []Model `json:"data"`
	}{"list", data})
}

// ParseModelIDs reads the names from an upstream's model list, at most limit of
// them. Names that are empty or longer than MaxModelBytes are left out. ok is false
// when body is no model list.
func ParseModelIDs(body []byte, limit int) (ids []string, ok bool) {
	if check(body) != nil {
		return nil, false
	}
	data := rootOf(body).field("data")
	if !data.isArray() {
		return nil, false
	}
	it := walk(data)
	for m, more := it.element(); more && len(ids) < limit; m, more = it.element() {
		if id, isText := m.field("id").text(); isText && id != "" && len(id) <= MaxModelBytes {
			ids = append(ids, id)
		}
	}
	return ids, true
}
