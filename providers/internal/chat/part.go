package chat

import "strings"

// The types of content parts that have a meaning here.
const (
	PartText    = "text"
	PartImage   = "image_url"
	PartAudio   = "input_audio"
	PartFile    = "file"
	PartRefusal = "refusal"
)

// wholeContent is the index of the one part that is a whole content.
const wholeContent = -1

// Part is one piece of a message's content.
type Part struct {
	// Type is one of the constants above. Any other is kept by its name, and nothing of
	// it but the cache hint is read.
	Type string

	Text string // of a text or a refusal

	// Where an image or a file is: in the request, or behind a link. Audio is always in
	// the request; of its Media only the Base64 is set, and Format says what it is.
	Media Media
	URL   string // http or https

	Detail   string // of an image: auto, low, high, as the client wrote it
	Format   string // of audio: wav, mp3, as the client wrote it
	FileID   string // of a file that was uploaded before
	Filename string // of a file

	CacheControl Raw // extension: a hint that the prompt up to here is worth caching

	message, index int
}

// Media is data that travels in the request.
type Media struct {
	Type   string // such as image/png, in lower case and without parameters
	Base64 string // RFC 4648's standard alphabet with padding; a part of the body, not a copy
}

// Path names the part in errors: messages[2].content[0], or messages[2].content where
// the content is a string.
func (p *Part) Path() string {
	path := element("messages", p.message)
	if p.index == wholeContent {
		return path + ".content"
	}
	return path + "." + element("content", p.index)
}

func parsePart(v value) (Part, *fault) {
	o := read(v, "type", "text", "refusal", "image_url", "input_audio", "file", "cache_control")
	p := Part{Type: o.name("type"), CacheControl: o.object("cache_control")}
	switch p.Type {
	case PartText:
		o.need("text")
		p.Text = o.text("text")
	case PartRefusal:
		o.need("refusal")
		p.Text = o.text("refusal")
	case PartImage:
		o.keep(p.image(o.get("image_url")).under("image_url"))
	case PartAudio:
		o.keep(p.audio(o.get("input_audio")).under("input_audio"))
	case PartFile:
		o.keep(p.file(o.get("file")).under("file"))
	}
	return p, o.bad
}

func (p *Part) image(v value) *fault {
	o := read(v, "url", "detail")
	url := o.name("url")
	p.Detail = o.text("detail")
	if o.bad == nil {
		o.keep(p.source(url).under("url"))
	}
	return o.bad
}

func (p *Part) audio(v value) *fault {
	o := read(v, "data", "format")
	p.Media.Base64 = o.name("data")
	p.Format = o.name("format")
	if o.bad == nil && !isBase64(p.Media.Base64) {
		o.fail("data", "is not valid base64")
	}
	return o.bad
}

func (p *Part) file(v value) *fault {
	o := read(v, "file_data", "file_id", "filename")
	data := o.text("file_data")
	p.FileID, p.Filename = o.text("file_id"), o.text("filename")
	switch {
	case o.bad != nil:
	case data != "" && p.FileID != "":
		o.fail("file_id", "cannot stand beside file_data")
	case data != "":
		o.keep(p.source(data).under("file_data"))
	case p.FileID == "":
		o.fail("", "must hold file_data or file_id")
	}
	return o.bad
}

// source takes a data URL apart (RFC 2397) or keeps a link.
func (p *Part) source(url string) *fault {
	if hasScheme(url, "http://") || hasScheme(url, "https://") {
		p.URL = url
		return nil
	}
	if !hasScheme(url, "data:") {
		return faulty("", "must be a data URL or an http or https link")
	}
	head, data, found := strings.Cut(url[len("data:"):], ",")
	if !found {
		return faulty("", "is a data URL without data")
	}
	head, encoded := cutSuffixFold(head, ";base64")
	if !encoded {
		return faulty("", "must be a data URL in base64")
	}
	media, _, _ := strings.Cut(head, ";")
	media = strings.ToLower(strings.TrimSpace(media))
	if !isMediaType(media) {
		return faulty("", "must name a media type such as image/png")
	}
	if !isBase64(data) {
		return faulty("", "is not valid base64")
	}
	p.Media = Media{Type: media, Base64: data}
	return nil
}

func hasScheme(url, scheme string) bool {
	return len(url) > len(scheme) && strings.EqualFold(url[:len(scheme)], scheme)
}

func cutSuffixFold(s, suffix string) (string, bool) {
	cut := len(s) - len(suffix)
	if cut < 0 || !strings.EqualFold(s[cut:], suffix) {
		return s, false
	}
	return s[:cut], true
}

// isMediaType accepts a type and a subtype in the alphabet of RFC 6838, in lower case.
func isMediaType(s string) bool {
	const maxMediaType = 127
	kind, sub, found := strings.Cut(s, "/")
	if !found || kind == "" || sub == "" || len(s) > maxMediaType {
		return false
	}
	for _, b := range []byte(kind + sub) {
		if (b < 'a' || b > 'z') && (b < '0' || b > '9') && strings.IndexByte("!#$&-^_.+", b) < 0 {
			return false
		}
	}
	return true
}

// isBase64 checks without decoding, so that a large image is not copied. What passes
// may be written into JSON as it stands.
func isBase64(s string) bool {
	if s == "" || len(s)%4 != 0 {
		return false
	}
	body := strings.TrimSuffix(strings.TrimSuffix(s, "="), "=")
	for i := range len(body) {
		if !base64Alphabet[body[i]] {
			return false
		}
	}
	return true
}

var base64Alphabet = func() (table [256]bool) {
	for _, b := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") {
		table[b] = true
	}
	return table
}()
