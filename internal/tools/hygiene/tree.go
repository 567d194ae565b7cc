package main

import (
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// tree holds the text of every file under its slash-separated name.
type tree map[string]string

// rule is something that no line of a committed file may hold.
type rule struct {
	name    string
	pattern *regexp.Regexp
}

func rules() []rule {
	return []rule{
		{"path of one machine", regexp.MustCompile(`(^|[^\w.})-])/(work|farm|root)/`)},
		{"package registry", regexp.MustCompile(`(proxy|sum)\.golang\.org|registry\.(npmjs|yarnpkg)\.|(deb|security)\.debian\.org|GOPROXY\s*[:=]\s*"?https?:`)},
	}
}

// findings returns "file:line: what" for everything wrong, in the files' order.
func (t tree) findings() []string {
	names := make([]string, 0, len(t))
	for name := range t {
		names = append(names, name)
	}
	slices.Sort(names)
	var found []string
	for _, name := range names {
		text := t[name]
		if strings.ContainsRune(text[:min(len(text), 8000)], 0) {
			continue // not text
		}
		found = append(found, forbidden(name, text)...)
		if strings.EqualFold(path.Ext(name), ".md") {
			found = append(found, t.brokenLinks(name, text)...)
		}
	}
	return found
}

func forbidden(name, text string) []string {
	var found []string
	all := rules()
	number := 0
	for line := range strings.Lines(text) {
		number++
		for _, r := range all {
			if match := r.pattern.FindString(line); match != "" {
				found = append(found, fmt.Sprintf("%s:%d: %s: %q", name, number, r.name, strings.TrimSpace(match)))
			}
		}
	}
	return found
}

var (
	link     = regexp.MustCompile(`\]\(<?([^()<>\s]+)>?(?:\s+"[^"]*")?\)|^\s*\[[^\]]+\]:\s+(\S+)`)
	codeSpan = regexp.MustCompile("`[^`]*`")
)

// brokenLinks checks the links of one Markdown document that stay in the repository.
func (t tree) brokenLinks(name, text string) []string {
	var found []string
	for number, line := range prose(text) {
		line = codeSpan.ReplaceAllString(line, "``")
		for _, match := range link.FindAllStringSubmatch(line, -1) {
			target := match[1] + match[2]
			if !t.leadsSomewhere(name, target) {
				found = append(found, fmt.Sprintf("%s:%d: link leads nowhere: %q", name, number, target))
			}
		}
	}
	return found
}

// leadsSomewhere says whether a link in a document leads out of the repository,
// where nothing is checked, or to a file, folder and heading that exist.
func (t tree) leadsSomewhere(from, target string) bool {
	u, err := url.Parse(target)
	if err != nil {
		return false
	}
	if u.Scheme != "" || u.Host != "" {
		return true
	}
	to := from
	if u.Path != "" {
		to = path.Join(path.Dir(from), u.Path)
		if strings.HasPrefix(u.Path, "/") {
			to = strings.TrimPrefix(path.Clean(u.Path), "/")
		}
	}
	text, isFile := t[to]
	if !isFile {
		return u.Fragment == "" && t.hasFolder(to)
	}
	if u.Fragment == "" || !strings.EqualFold(path.Ext(to), ".md") {
		return true
	}
	return slices.Contains(anchors(text), u.Fragment)
}

func (t tree) hasFolder(name string) bool {
	if name == "." {
		return true
	}
	for file := range t {
		if strings.HasPrefix(file, name+"/") {
			return true
		}
	}
	return false
}

// prose yields a document's lines by number, without those of fenced code.
func prose(text string) func(yield func(int, string) bool) {
	return func(yield func(int, string) bool) {
		fence := ""
		number := 0
		for line := range strings.Lines(text) {
			number++
			mark := strings.TrimSpace(line)
			switch {
			case fence != "":
				if strings.HasPrefix(mark, fence) {
					fence = ""
				}
				continue
			case strings.HasPrefix(mark, "```"), strings.HasPrefix(mark, "~~~"):
				fence = mark[:3]
				continue
			}
			if !yield(number, line) {
				return
			}
		}
	}
}

// anchors returns the names under which a document's headings can be linked to, as
// GitHub makes them: lower case, punctuation dropped, blanks to hyphens, and a
// number behind a name that came before.
func anchors(text string) []string {
	var names []string
	seen := make(map[string]int)
	for _, line := range prose(text) {
		level := len(line) - len(strings.TrimLeft(line, "#"))
		if level < 1 || level > 6 || !strings.HasPrefix(line[level:], " ") {
			continue
		}
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r):
				return unicode.ToLower(r)
			}
			return -1
		}, strings.TrimSpace(line[level:]))
		if n := seen[name]; n > 0 {
			names = append(names, fmt.Sprintf("%s-%d", name, n))
		} else {
			names = append(names, name)
		}
		seen[name]++
	}
	return names
}
