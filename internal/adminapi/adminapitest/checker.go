package adminapitest

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Checker checks exchanges with the admin API.
type Checker struct {
	tb       testing.TB
	contract *contract
	part     bool

	mu   sync.Mutex
	seen map[string]bool // operations with statuses and media types of successes
}

var loaded = sync.OnceValues(load)

// New returns a checker that reports to the test.
func New(tb testing.TB) *Checker {
	tb.Helper()
	c, err := loaded()
	if err != nil {
		tb.Fatal(err)
	}
	return &Checker{tb: tb, contract: c, seen: make(map[string]bool)}
}

// Part returns a checker for a part of the API on its own, of which errors, and the
// headers that every answer has, are somebody else's.
func Part(tb testing.TB) *Checker {
	tb.Helper()
	c := New(tb)
	c.part = true
	return c
}

// Operations returns every operation, as a method and a path.
func (c *Checker) Operations() []string {
	var all []string
	for _, op := range c.contract.all {
		all = append(all, op.method+" "+op.template)
	}
	return all
}

// Unseen returns the successes that are documented and were not seen yet, such as
// "showConfig 200 application/yaml".
func (c *Checker) Unseen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	for _, op := range c.contract.all {
		for _, status := range slices.Sorted(maps.Keys(op.answers)) {
			if status >= http.StatusMultipleChoices {
				continue
			}
			for _, success := range op.successes(status) {
				if !c.seen[success] {
					all = append(all, success)
				}
			}
		}
	}
	return all
}

func (op *operation) successes(status int) []string {
	if len(op.answers[status].content) == 0 {
		return []string{op.success(status, "")}
	}
	var all []string
	for _, media := range slices.Sorted(maps.Keys(op.answers[status].content)) {
		all = append(all, op.success(status, media))
	}
	return all
}

func (op *operation) success(status int, media string) string {
	return strings.TrimSpace(op.name + " " + strconv.Itoa(status) + " " + media)
}

// exchange is a request and its answer.
type exchange struct {
	method  string
	url     *url.URL
	request []byte
	status  int
	header  http.Header
	body    []byte
}

// check reports what of the exchange is not as the document has it.
func (c *Checker) check(x *exchange) {
	c.tb.Helper()
	if c.part && x.status >= http.StatusBadRequest {
		return
	}
	for _, fault := range c.faults(x) {
		c.tb.Errorf("%s %s: %d: %s\n%.500s", x.method, x.url, x.status, fault, x.body)
	}
}

func (c *Checker) faults(x *exchange) []string {
	var faults []string
	if !c.part {
		for _, name := range []string{"X-Request-Id", "Cache-Control"} {
			if x.header.Get(name) == "" {
				faults = append(faults, "the answer has no "+name)
			}
		}
	}
	p := c.contract.find(x.url.EscapedPath())
	if p == nil {
		return append(faults, c.elsewhere(x, http.StatusNotFound)...)
	}
	op := p.byMethod[x.method]
	if x.method == http.MethodHead {
		op = p.byMethod[http.MethodGet]
	}
	if op == nil {
		faults = append(faults, c.elsewhere(x, http.StatusMethodNotAllowed)...)
		want := strings.Join(slices.Sorted(maps.Keys(p.byMethod)), ", ")
		if got := x.header.Get("Allow"); x.status == http.StatusMethodNotAllowed && got != want {
			faults = append(faults, fmt.Sprintf("Allow is %q, not %q", got, want))
		}
		return faults
	}
	if x.status < http.StatusMultipleChoices {
		faults = append(faults, op.requestFaults(x)...)
	}
	return append(faults, c.answerFaults(op, x)...)
}

// elsewhere checks the answer to what the document does not have: an error, like those of
// every operation.
func (c *Checker) elsewhere(x *exchange, status int) []string {
	if !slices.Contains([]int{status, http.StatusUnauthorized, http.StatusForbidden}, x.status) {
		return []string{fmt.Sprintf("the document has nothing here, and the status is not %d", status)}
	}
	for _, op := range c.contract.all {
		if a := op.answers[http.StatusUnauthorized]; a != nil {
			return contentFaults(a.content, x)
		}
	}
	return []string{"no operation documents 401"}
}

// requestFaults returns what the document does not allow of a request that was accepted.
func (op *operation) requestFaults(x *exchange) []string {
	var faults []string
	values, err := url.ParseQuery(x.url.RawQuery)
	if err != nil {
		faults = append(faults, err.Error())
	}
	for name, given := range values {
		q := op.query[name]
		switch {
		case q == nil:
			faults = append(faults, fmt.Sprintf("the parameter %q is not documented", name))
		case len(given) > 1:
			faults = append(faults, fmt.Sprintf("the parameter %q is given several times", name))
		default:
			if err := q.schema.Validate(q.value(given[0])); err != nil {
				faults = append(faults, fmt.Sprintf("the parameter %q: %s", name, err))
			}
		}
	}
	for name, q := range op.query {
		if q.required && !values.Has(name) {
			faults = append(faults, fmt.Sprintf("the parameter %q is required", name))
		}
	}
	switch {
	case len(x.request) == 0 && op.bodyRequired:
		faults = append(faults, "the request's body is required")
	case len(x.request) > 0 && op.body == nil:
		faults = append(faults, "no body of the request is documented")
	case len(x.request) > 0:
		if err := validate(op.body, x.request); err != nil {
			faults = append(faults, fmt.Sprintf("the request's body: %s", err))
		}
	}
	return faults
}

// value is a parameter as JSON would have it.
func (q *parameter) value(text string) any {
	switch {
	case q.list && text == "":
		return []any{}
	case q.list:
		var all []any
		for part := range strings.SplitSeq(text, ",") {
			all = append(all, strings.TrimSpace(part))
		}
		return all
	case q.kind == "string" || q.kind == "":
		return text
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return text
	}
	return value
}

func (c *Checker) answerFaults(op *operation, x *exchange) []string {
	a := op.answers[x.status]
	if a == nil {
		return []string{"the status is not documented"}
	}
	var faults []string
	for _, name := range a.headers {
		if x.header.Get(name) == "" {
			faults = append(faults, "the answer has no "+name)
		}
	}
	if x.method == http.MethodHead {
		return faults // there is nothing more to see
	}
	faults = append(faults, contentFaults(a.content, x)...)
	if len(faults) == 0 && x.status < http.StatusMultipleChoices {
		media, _, _ := mime.ParseMediaType(x.header.Get("Content-Type")) // empty where there is no body
		c.mu.Lock()
		c.seen[op.success(x.status, media)] = true
		c.mu.Unlock()
	}
	return faults
}

func contentFaults(content map[string]*jsonschema.Schema, x *exchange) []string {
	if len(content) == 0 {
		if len(x.body) > 0 || x.header.Get("Content-Type") != "" {
			return []string{"no body of the answer is documented"}
		}
		return nil
	}
	media, _, err := mime.ParseMediaType(x.header.Get("Content-Type"))
	schema := content[media]
	if err != nil || schema == nil {
		return []string{fmt.Sprintf("the media type %q is not documented", x.header.Get("Content-Type"))}
	}
	body := x.body
	switch media {
	case "text/csv":
		if _, err := csv.NewReader(bytes.NewReader(body)).Read(); err != nil {
			return []string{fmt.Sprintf("the answer has no header line: %s", err)}
		}
		return nil
	case "application/yaml":
		if body, err = yaml.YAMLToJSON(body); err != nil {
			return []string{fmt.Sprintf("the answer is no YAML: %s", err)}
		}
	}
	if err := validate(schema, body); err != nil {
		return []string{fmt.Sprintf("the answer: %s", err)}
	}
	return nil
}

func validate(schema *jsonschema.Schema, text []byte) error {
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("read JSON: %w", err)
	}
	return schema.Validate(value)
}

// Handler returns the handler with the checker before it.
func (c *Checker) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := &exchange{method: r.Method, url: r.URL, status: http.StatusOK}
		var read bytes.Buffer
		if r.Body != nil && r.Body != http.NoBody {
			r = r.Clone(r.Context())
			r.Body = tee{io.TeeReader(r.Body, &read), r.Body}
		}
		kept := &keeper{ResponseWriter: w, x: x}
		next.ServeHTTP(kept, r)
		x.request, x.header = read.Bytes(), w.Header()
		c.check(x)
	})
}

// tee is a body of which is kept what is read.
type tee struct {
	io.Reader
	io.Closer
}

// keeper keeps what is answered.
type keeper struct {
	http.ResponseWriter
	x     *exchange
	begun bool
}

// Unwrap lets an http.ResponseController reach the writer.
func (k *keeper) Unwrap() http.ResponseWriter { return k.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (k *keeper) WriteHeader(status int) {
	if !k.begun {
		k.begun, k.x.status = true, status
	}
	k.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (k *keeper) Write(b []byte) (int, error) {
	k.begun = true
	k.x.body = append(k.x.body, b...)
	return k.ResponseWriter.Write(b)
}

// RoundTripper returns the transport with the checker around it, for an API that is
// reached over a connection. It reads an answer to its end before it hands it on.
func (c *Checker) RoundTripper(next http.RoundTripper) http.RoundTripper { return transport{c, next} }

type transport struct {
	checker *Checker
	next    http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	var sent []byte
	if r.Body != nil {
		var err error
		if sent, err = io.ReadAll(r.Body); err != nil {
			return nil, fmt.Errorf("read the request: %w", err)
		}
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(sent))
	}
	resp, err := t.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	t.checker.check(&exchange{r.Method, r.URL, sent, resp.StatusCode, resp.Header, body})
	return resp, nil
}
