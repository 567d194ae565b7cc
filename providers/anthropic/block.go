package anthropic

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"unicode/utf8"

	"sluice/providers/internal/chat"
)

// The types of content blocks that are written and read.
const (
	blockText       = "text"
	blockImage      = "image"
	blockDocument   = "document"
	blockToolUse    = "tool_use"
	blockToolResult = "tool_result"
	blockThinking   = "thinking"
	blockRedacted   = "redacted_thinking"
)

// block is one content block to be written.
type block struct {
	kind  string
	text  string     // of a text, a thinking or a text document; a called tool's name; redacted data
	id    string     // of a call or its result
	input chat.Raw   // of a call
	part  *chat.Part // an image's or a document's source, unless it is text
	title string     // of a document
	sign  string     // of a thinking
	inner []block    // of a result
	cache chat.Raw
}

// media says what may stand in a content beside text.
type media bool

const (
	onlyText media = false
	anyMedia media = true
)

// imageTypes are those that the API takes.
var imageTypes = []string{"image/jpeg", "image/png", "image/gif", "image/webp"}

// parts reads a content. Texts that say nothing are left out, since the API refuses
// them. How closely an image is to be looked at (detail) is a hint about its cost that
// the API has no use for.
func (b *builder) parts(m *chat.Message, allowed media) []block {
	var all []block
	for i := range m.Content {
		p := &m.Content[i]
		made, fault := block{}, "content of the type "+p.Type
		switch {
		case p.Type == chat.PartText, p.Type == chat.PartRefusal:
			made, fault = block{kind: blockText, text: p.Text}, ""
		case p.Type == chat.PartImage && allowed == anyMedia:
			made, fault = image(p)
		case p.Type == chat.PartFile && allowed == anyMedia:
			made, fault = document(p)
		}
		if fault != "" {
			b.unsupported(p.Path(), fault)
			continue
		}
		if made.part == nil && blank(made.text) {
			continue
		}
		made.cache = p.CacheControl
		all = append(all, made)
	}
	return all
}

func image(p *chat.Part) (made block, fault string) {
	if p.URL == "" && !slices.Contains(imageTypes, p.Media.Type) {
		return block{}, "an image of the type " + p.Media.Type
	}
	return block{kind: blockImage, part: p}, ""
}

// document reads a file: a PDF in the request or behind a link, or a text.
func document(p *chat.Part) (made block, fault string) {
	made = block{kind: blockDocument, part: p, title: p.Filename}
	switch {
	case p.FileID != "":
		return block{}, "a file by its id"
	case p.URL != "", p.Media.Type == "application/pdf":
		return made, ""
	case !strings.HasPrefix(p.Media.Type, "text/") && p.Media.Type != "application/json":
		return block{}, "a file of the type " + p.Media.Type
	}
	text, err := base64.StdEncoding.DecodeString(p.Media.Base64)
	if err != nil || !utf8.Valid(text) {
		return block{}, "a text file that is not in UTF-8"
	}
	made.part, made.text = nil, string(text)
	return made, ""
}

func (b *builder) writeBlocks(blocks []block) {
	for i := range blocks {
		b.raw([]string{`[`, `,`}[min(i, 1)])
		b.writeBlock(&blocks[i])
	}
	b.raw(`]`)
}

func (b *builder) writeBlock(k *block) {
	b.raw(`{"type":"` + k.kind + `"`)
	switch k.kind {
	case blockText:
		b.member("text", k.text)
	case blockThinking:
		b.member("thinking", k.text)
		b.member("signature", k.sign)
	case blockRedacted:
		b.member("data", k.text)
	case blockToolUse:
		b.member("id", k.id)
		b.member("name", k.text)
		b.raw(`,"input":` + string(k.input))
	case blockToolResult:
		b.member("tool_use_id", k.id)
		if len(k.inner) > 0 {
			b.raw(`,"content":`)
			b.writeBlocks(k.inner)
		}
	default:
		b.writeSource(k)
	}
	b.cache(k.cache)
	b.raw(`}`)
}

func (b *builder) writeSource(k *block) {
	switch {
	case k.part == nil:
		b.raw(`,"source":{"type":"text","media_type":"text/plain"`)
		b.member("data", k.text)
	case k.part.URL != "":
		b.raw(`,"source":{"type":"url"`)
		b.member("url", k.part.URL)
	default:
		b.raw(`,"source":{"type":"base64"`)
		b.member("media_type", k.part.Media.Type)
		b.raw(`,"data":"`)
		b.raw(k.part.Media.Base64) // its alphabet needs no escapes
		b.raw(`"`)
	}
	b.raw(`}`)
	if k.title != "" {
		b.member("title", k.title)
	}
}

func (b *builder) member(name, s string) {
	b.raw(`,"` + name + `":`)
	b.text(s)
}

// toolID is an id as the API takes it: letters, digits, _ and -. Ids of other providers
// are turned into such, the same one each time, so that a conversation can change its
// provider.
func toolID(id string) string {
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			sum := sha256.Sum256([]byte(id))
			return "call_" + hex.EncodeToString(sum[:12])
		}
	}
	return id
}
