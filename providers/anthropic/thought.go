package anthropic

import (
	"encoding/json"

	"sluice/internal/inference"
	"sluice/providers/internal/chat"
)

// thought is a thinking block as it travels to the client and back, in the extra_content
// of an assistant's message: {"anthropic":{"thinking":[…]}}. The API wants the blocks
// back as they were while tools are called, and checks their signatures.
type thought struct {
	Type      string `json:"type"`
	Thinking  string `json:"thinking,omitempty"`
	Signature string `json:"signature,omitempty"`
	Data      string `json:"data,omitempty"` // of redacted_thinking

	// After is where the block stood: 0 before the text, 1 behind it, and one more for
	// each call before the block.
	After int `json:"after,omitempty"`
}

type extraContent struct {
	Anthropic *struct {
		Thinking []thought `json:"thinking"`
	} `json:"anthropic"`
}

// returnable reports that the API would take the block back.
func (t *thought) returnable() bool {
	return (t.Type == blockThinking && t.Signature != "") || (t.Type == blockRedacted && t.Data != "")
}

func (t *thought) block() block {
	if t.Type == blockRedacted {
		return block{kind: blockRedacted, text: t.Data}
	}
	return block{kind: blockThinking, text: t.Thinking, sign: t.Signature}
}

// readThoughts takes the blocks from what the client sent back; what other providers put
// there is left alone. The path is the message's.
func readThoughts(extra chat.Raw, path string) ([]thought, error) {
	if extra == "" {
		return nil, nil
	}
	var read extraContent
	bad := json.Unmarshal([]byte(extra), &read) != nil
	if !bad && read.Anthropic == nil {
		return nil, nil
	}
	if !bad {
		for i := range read.Anthropic.Thinking {
			bad = bad || !read.Anthropic.Thinking[i].returnable()
		}
	}
	if bad {
		e := inference.Errorf(inference.CodeInvalidRequest, "%s.extra_content.anthropic is not as it was given", path)
		e.Param = path + ".extra_content"
		return nil, e
	}
	return read.Anthropic.Thinking, nil
}

// thoughts gathers the blocks of one answer.
type thoughts struct {
	exclude bool // the client does not want to see any
	all     []thought
	bytes   int
	text    bool // a text has begun
	calls   int
}

// maxThoughtBytes bounds what is kept of a streamed answer's thoughts. Beyond it none
// are given back: a part would not be accepted.
const maxThoughtBytes = 8 << 20

func (g *thoughts) place() int {
	if g.text || g.calls > 0 {
		return 1 + g.calls
	}
	return 0
}

func (g *thoughts) add(t thought) {
	g.bytes += len(t.Thinking) + len(t.Signature) + len(t.Data)
	if !t.returnable() || g.bytes > maxThoughtBytes {
		return
	}
	g.all = append(g.all, t)
}

// extra is the message's extra_content, empty when there are no thoughts or when some of
// them must not be shown: without its text a block would not be accepted.
func (g *thoughts) extra() chat.Raw {
	if len(g.all) == 0 || g.bytes > maxThoughtBytes {
		return ""
	}
	for i := range g.all {
		if g.exclude && g.all[i].Thinking != "" {
			return ""
		}
	}
	var extra extraContent
	extra.Anthropic = &struct {
		Thinking []thought `json:"thinking"`
	}{g.all}
	text, err := json.Marshal(extra)
	if err != nil {
		return "" // impossible: strings and numbers always encode
	}
	return chat.Raw(text)
}
