package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// plainPattern is text that YAML takes as it stands. Anything else is written in
// quotes: a JSON string is a YAML string too.
const plainPattern = `^(\./|/)?[A-Za-z][A-Za-z0-9_./-]*$`

// Show returns the effective settings as YAML, every one of them, in the order of
// the structs and with secrets masked. Load reads it back to the same settings,
// apart from the masks.
func Show(c *Config) ([]byte, error) {
	p := &printer{plain: regexp.MustCompile(plainPattern)}
	s := specOf(*c)
	for _, f := range s.fields {
		p.setting(f.name, f, valueOf(c).Field(f.index), "")
	}
	if p.err != nil {
		return nil, fmt.Errorf("encode configuration: %w", p.err)
	}
	return []byte(p.out.String()), nil
}

// printer writes settings as block YAML.
type printer struct {
	out   strings.Builder
	plain *regexp.Regexp
	err   error
}

// setting writes one key with its value, or nothing for what is not given and has
// no empty form.
func (p *printer) setting(key string, s *spec, v reflect.Value, indent string) {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if !v.IsValid() || v.IsZero() && (s.kind == kindTime || len(s.oneOf) > 0) {
		return
	}
	p.out.WriteString(indent + p.text(key) + ":")
	switch {
	case s.kind == kindStruct && len(s.fields) > 0:
		p.out.WriteByte('\n')
		p.fields(s, v, indent+"  ")
	case s.kind == kindMap && v.Len() > 0:
		p.out.WriteByte('\n')
		names := v.MapKeys()
		slices.SortFunc(names, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, name := range names {
			p.setting(name.String(), s.elem, v.MapIndex(name), indent+"  ")
		}
	case s.kind == kindStruct || s.kind == kindMap:
		p.out.WriteString(" {}\n")
	case s.kind == kindList && v.Len() > 0:
		p.out.WriteByte('\n')
		p.list(s, v, indent+"  ")
	case s.kind == kindList:
		p.out.WriteString(" []\n")
	default:
		p.out.WriteString(" " + p.scalar(v.Interface()) + "\n")
	}
}

func (p *printer) fields(s *spec, v reflect.Value, indent string) {
	for _, f := range s.fields {
		p.setting(f.name, f, v.Field(f.index), indent)
	}
}

func (p *printer) list(s *spec, v reflect.Value, indent string) {
	for i := range v.Len() {
		if s.elem.kind != kindStruct {
			p.out.WriteString(indent + "- " + p.scalar(v.Index(i).Interface()) + "\n")
			continue
		}
		p.out.WriteString(indent + "-\n")
		p.fields(s.elem, v.Index(i), indent+"  ")
	}
}

func (p *printer) scalar(value any) string {
	switch value := value.(type) {
	case Secret:
		return p.text(value.String())
	case URL:
		return p.text(escape(value.String()))
	case string:
		return p.text(escape(value))
	case time.Duration:
		return durationText(value)
	case time.Time:
		return p.text(value.Format(time.RFC3339))
	case float64:
		return strconv.FormatFloat(value, 'f', -1, 64)
	default:
		return fmt.Sprint(value)
	}
}

// text writes a key or a text, in quotes where YAML could read something else.
func (p *printer) text(text string) string {
	words := []string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
	if p.plain.MatchString(text) && !slices.Contains(words, strings.ToLower(text)) {
		return text
	}
	var quoted strings.Builder
	encoder := json.NewEncoder(&quoted)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(text); err != nil {
		p.err = err
	}
	return strings.TrimSuffix(quoted.String(), "\n")
}

// escape keeps text that looks like a variable from being one when the output is
// used as a file.
func escape(text string) string { return strings.ReplaceAll(text, "${", "$${") }
