package gemini

import (
	"mime"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"sluice/internal/openaiapi"
	"sluice/providers/internal/chat"
)

// speaker is who says a content. Results of functions are the user's upstream, but stand
// in a content of their own: the upstream wants as many of them right behind a turn as
// that has calls, and nothing among them.
type speaker string

const (
	byNobody    speaker = ""
	byUser      speaker = "user"
	byModel     speaker = "model"
	byFunctions speaker = "functions"
)

// noSignature stands in for the thought signature of a call that another model made, or
// whose client did not keep it. Gemini 3 refuses a call without; its reference names
// this word for histories that come from elsewhere.
const noSignature = "skip_thought_signature_validator"

// conversation writes systemInstruction and contents. All that system and developer say
// comes first, wherever it stood: the upstream has no other place. A request that holds
// nothing else has it as the user's turn, as the upstream wants one.
func (t *translator) conversation() error {
	instructs := func(m chat.Message) bool { return m.Role == chat.RoleSystem || m.Role == chat.RoleDeveloper }
	onlyInstructions := !slices.ContainsFunc(t.req.Messages, func(m chat.Message) bool { return !instructs(m) })
	if !onlyInstructions && slices.ContainsFunc(t.req.Messages, instructs) {
		if err := t.instructions(instructs); err != nil {
			return err
		}
	}
	t.w.key("contents")
	t.w.open('[')
	for i := range t.req.Messages {
		m := &t.req.Messages[i]
		if m.Name != "" {
			if err := t.unsupported.Part(m.Path()+".name", "name"); err != nil {
				return err
			}
		}
		if instructs(*m) && !onlyInstructions {
			continue
		}
		if err := t.said(m); err != nil {
			return err
		}
	}
	t.take(byNobody)
	t.w.closes(']')
	return nil
}

func (t *translator) instructions(instructs func(chat.Message) bool) error {
	before := len(t.w.out)
	t.w.key("systemInstruction")
	t.w.out = append(t.w.out, `{"parts":[`...)
	empty := len(t.w.out)
	for i := range t.req.Messages {
		m := &t.req.Messages[i]
		if !instructs(*m) {
			continue
		}
		for j := range m.Content {
			if err := t.textPart(&m.Content[j]); err != nil {
				return err
			}
		}
	}
	if len(t.w.out) == empty {
		t.w.out = t.w.out[:before]
		return nil
	}
	t.w.out = append(t.w.out, "]}"...)
	return nil
}

func (t *translator) said(m *chat.Message) error {
	switch m.Role {
	case chat.RoleAssistant:
		return t.answered(m)
	case chat.RoleTool:
		return t.resulted(m)
	case chat.RoleUser, chat.RoleSystem, chat.RoleDeveloper:
	}
	for i := range m.Content {
		if err := t.userPart(&m.Content[i]); err != nil {
			return err
		}
	}
	return nil
}

// take begins a part, in the open content if that is the speaker's.
func (t *translator) take(who speaker) {
	if who == t.turn {
		return
	}
	if t.turn != byNobody {
		t.w.out = append(t.w.out, "]}"...)
	}
	if t.turn = who; who == byNobody {
		return
	}
	t.w.open('{')
	role := who
	if role == byFunctions {
		role = byUser
	}
	t.w.text("role", string(role))
	t.w.key("parts")
	t.w.open('[')
}

// textPart writes text and reports anything else.
func (t *translator) textPart(p *chat.Part) error {
	if p.Type != chat.PartText && p.Type != chat.PartRefusal {
		return t.unsupported.Part(p.Path(), p.Type)
	}
	if p.Text != "" { // the upstream refuses an empty part
		t.w.open('{')
		t.w.text("text", p.Text)
		t.w.closes('}')
	}
	return nil
}

func (t *translator) userPart(p *chat.Part) error {
	switch p.Type {
	case chat.PartText, chat.PartRefusal:
		if p.Text == "" {
			return nil
		}
		t.take(byUser)
		return t.textPart(p)
	case chat.PartImage, chat.PartFile:
		if p.FileID != "" {
			return t.unsupported.Part(p.Path()+".file.file_id", "file_id")
		}
		t.take(byUser)
		t.media(p)
		return nil
	case chat.PartAudio:
		kind, ok := audioTypes[strings.ToLower(p.Format)]
		if !ok {
			return t.unsupported.Part(p.Path()+".input_audio.format", "audio format")
		}
		t.take(byUser)
		t.inline(kind, p.Media.Base64)
		return nil
	}
	return t.unsupported.Part(p.Path(), p.Type)
}

// audioTypes are the kinds of sound that the upstream understands.
var audioTypes = map[string]string{
	"wav": "audio/wav", "mp3": "audio/mp3", "aiff": "audio/aiff", "aac": "audio/aac", "ogg": "audio/ogg", "flac": "audio/flac",
}

func (t *translator) media(p *chat.Part) {
	if p.URL == "" {
		t.inline(p.Media.Type, p.Media.Base64)
		return
	}
	t.w.open('{')
	t.w.key("fileData")
	t.w.open('{')
	t.w.optional("mimeType", guessType(p))
	t.w.text("fileUri", p.URL)
	t.w.out = append(t.w.out, "}}"...)
}

func (t *translator) inline(kind, base64 string) {
	t.w.open('{')
	t.w.key("inlineData")
	t.w.open('{')
	t.w.text("mimeType", kind)
	t.w.base64("data", base64)
	t.w.out = append(t.w.out, "}}"...)
}

// linkTypes are the kinds of linked files that are common, so that the guess does not
// depend on what the machine knows.
var linkTypes = map[string]string{
	".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif",
	".heic": "image/heic", ".heif": "image/heif", ".pdf": "application/pdf", ".txt": "text/plain", ".md": "text/markdown",
	".html": "text/html", ".csv": "text/csv", ".xml": "text/xml", ".json": "application/json", ".mp3": "audio/mp3",
	".wav": "audio/wav", ".ogg": "audio/ogg", ".flac": "audio/flac", ".mp4": "video/mp4", ".webm": "video/webm", ".mov": "video/quicktime",
}

// guessType tells what a link leads to by its extension, or the file's name; nothing is
// said when neither tells, and the upstream looks for itself.
func guessType(p *chat.Part) string {
	names := []string{p.Filename}
	if u, err := url.Parse(p.URL); err == nil {
		names = append(names, u.Path)
	}
	for _, name := range names {
		extension := strings.ToLower(path.Ext(name))
		if kind := linkTypes[extension]; kind != "" {
			return kind
		}
		if kind, _, err := mime.ParseMediaType(mime.TypeByExtension(extension)); err == nil {
			return kind
		}
	}
	return ""
}

// answered writes an assistant's message. Its own thoughts are left out: the upstream
// keeps them in signatures, which go back to where they came from. That of a message
// belongs to its last part of text.
func (t *translator) answered(m *chat.Message) error {
	if m.AudioID != "" {
		if err := t.unsupported.Part(m.Path()+".audio", "audio"); err != nil {
			return err
		}
	}
	parts := m.Content
	if m.Refusal != "" {
		parts = append(slices.Clone(parts), chat.Part{Type: chat.PartRefusal, Text: m.Refusal})
	}
	signature := signatureOf(m.Extra)
	for i := range parts {
		p := &parts[i]
		if p.Type != chat.PartText && p.Type != chat.PartRefusal {
			if err := t.unsupported.Part(p.Path(), p.Type); err != nil {
				return err
			}
			continue
		}
		if p.Text == "" {
			continue
		}
		t.take(byModel)
		t.w.open('{')
		t.w.text("text", p.Text)
		if i == len(parts)-1 {
			t.w.optional("thoughtSignature", signature)
			signature = ""
		}
		t.w.closes('}')
	}
	if signature != "" {
		t.take(byModel)
		t.w.out = append(t.w.out, `{"text":""`...)
		t.w.text("thoughtSignature", signature)
		t.w.closes('}')
	}
	return t.called(m)
}

// called writes an assistant's calls. Of several only the first must have a signature.
func (t *translator) called(m *chat.Message) error {
	signed := slices.ContainsFunc(m.ToolCalls, func(c chat.ToolCall) bool { return signatureOf(c.Extra) != "" })
	for i := range m.ToolCalls {
		call := &m.ToolCalls[i]
		at := m.Path() + ".tool_calls[" + strconv.Itoa(i) + "]"
		if call.Type != "function" {
			if err := t.unsupported.Part(at, call.Type+" call"); err != nil {
				return err
			}
			continue
		}
		args, ok := call.Object()
		if !ok {
			if err := t.unsupported.Part(at+".function.arguments", "arguments that are no JSON object"); err != nil {
				return err
			}
			args = "{}"
		}
		t.take(byModel)
		t.w.open('{')
		t.w.key("functionCall")
		t.w.open('{')
		t.w.optional("id", call.ID)
		t.w.text("name", call.Name)
		t.w.raw("args", string(args))
		t.w.closes('}')
		signature := signatureOf(call.Extra)
		if !signed && !takesBudgets(t.model) {
			signature, signed = noSignature, true
		}
		t.w.optional("thoughtSignature", signature)
		t.w.closes('}')
	}
	return nil
}

// signatureOf reads extra_content.google.thought_signature, which is where Google's own
// OpenAI-compatible API has it.
func signatureOf(extra chat.Raw) string {
	if extra == "" {
		return ""
	}
	if s := gjson.Get(string(extra), "google.thought_signature"); s.Type == gjson.String {
		return s.Str
	}
	return ""
}

// resulted writes the result of a call. The upstream takes an object: what is none is
// put into one under the name output, as the reference of FunctionResponse says.
func (t *translator) resulted(m *chat.Message) error {
	if m.ToolName == "" {
		return t.unsupported.Part(m.Path(), "the result of a call that is no function")
	}
	var text strings.Builder
	for i := range m.Content {
		p := &m.Content[i]
		if p.Type != chat.PartText && p.Type != chat.PartRefusal {
			if err := t.unsupported.Part(p.Path(), p.Type); err != nil {
				return err
			}
			continue
		}
		text.WriteString(p.Text)
	}
	t.take(byFunctions)
	w := &t.w
	w.open('{')
	w.key("functionResponse")
	w.open('{')
	w.optional("id", m.ToolCallID)
	w.text("name", m.ToolName)
	switch result := strings.TrimSpace(text.String()); {
	case !openaiapi.Valid([]byte(result)):
		w.key("response")
		w.open('{')
		w.text("output", text.String())
		w.closes('}')
	case result[0] == '{':
		w.raw("response", result)
	default:
		w.key("response")
		w.open('{')
		w.raw("output", result)
		w.closes('}')
	}
	w.out = append(w.out, "}}"...)
	return nil
}
