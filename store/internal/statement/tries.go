package statement

import (
	"encoding/json"
	"fmt"

	"sluice/internal/inference"
)

// EncodeTries returns the tries of a record as both databases keep them: a JSON array,
// or nil, which stands for NULL, when there are none. The texts are clean, so no
// character is in it that Postgres refuses in JSON.
func EncodeTries(tries []inference.Try) (*string, error) {
	if len(tries) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(tries)
	if err != nil {
		return nil, fmt.Errorf("encode tries: %w", err)
	}
	text := string(b)
	return &text, nil
}

// DecodeTries reads what EncodeTries returned.
func DecodeTries(text *string) ([]inference.Try, error) {
	if text == nil {
		return nil, nil
	}
	var tries []inference.Try
	if err := json.Unmarshal([]byte(*text), &tries); err != nil {
		return nil, fmt.Errorf("decode tries: %w", err)
	}
	return tries, nil
}
