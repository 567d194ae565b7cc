package batch

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/store"
)

// The codes of faults. Those that OpenAI has are spelled as OpenAI spells them; a fault of
// a request itself has the code that the call would have been refused with.
const (
	FaultInvalidJSON   = "invalid_json_line"
	FaultDuplicate     = "duplicate_custom_id"
	FaultMissing       = "missing_required_parameter"
	FaultInvalid       = "invalid_request"
	FaultMethod        = "invalid_method"
	FaultURL           = "invalid_url"
	FaultMixedModels   = "mismatched_model"
	FaultTooMany       = "too_many_tasks"
	FaultEmpty         = "empty_file"
	FaultLineTooLong   = "line_too_large"
	FaultFileGone      = "file_not_found"
	FaultFileDamaged   = "file_damaged"
	maxCustomID        = 512
	maxFaults          = 100
	maxModelInFault    = 64
	maxFaultTextLength = 512
)

// Rules are what the lines of a batch must keep to.
type Rules struct {
	Endpoint     string
	MaxLines     int
	MaxLineBytes int
	SingleModel  bool
}

// Call is what a line that is in order asks for. Body shares the line's memory.
type Call struct {
	CustomID string
	Body     []byte
	Request  openaiapi.ChatRequest
}

// Checker checks a batch's lines, one after the other. It remembers a digest of each
// custom_id, not the text: a million of them take some 50 MB.
type Checker struct {
	rules Rules
	seen  map[[16]byte]struct{}
	model string // of the first line, if there may be one alone
}

// NewChecker returns a checker that has seen no line yet.
func NewChecker(rules Rules) *Checker {
	return &Checker{rules: rules, seen: make(map[[16]byte]struct{})}
}

// Know notes a custom_id of a line that was found in order before.
func (c *Checker) Know(customID string) { c.seen[digest(customID)] = struct{}{} }

// Expect notes the model that a batch of one model has.
func (c *Checker) Expect(model string) { c.model = model }

// Lines returns how many lines were found in order.
func (c *Checker) Lines() int { return len(c.seen) }

func digest(text string) [16]byte {
	sum := sha256.Sum256([]byte(text))
	return [16]byte(sum[:])
}

// Check returns what the line asks for, or its fault.
func (c *Checker) Check(line Line) (Call, *store.BatchFault) {
	if line.TooLong() {
		return Call{}, fault(line.Number, FaultLineTooLong, "", "The line is longer than %d bytes.", c.rules.MaxLineBytes)
	}
	parsed, err := openaiapi.ParseBatchLine(line.Text)
	if err != nil {
		return Call{}, unreadable(line.Number, err)
	}
	key := digest(parsed.CustomID)
	_, seen := c.seen[key]
	switch {
	case parsed.CustomID == "":
		return Call{}, fault(line.Number, FaultMissing, "custom_id", "custom_id must not be empty.")
	case len(parsed.CustomID) > maxCustomID || store.CleanText(parsed.CustomID) != parsed.CustomID:
		return Call{}, fault(line.Number, FaultInvalid, "custom_id", "custom_id must be at most %d bytes long and hold no NUL.", maxCustomID)
	case seen:
		return Call{}, fault(line.Number, FaultDuplicate, "custom_id", "The custom_id of this line is that of an earlier line as well.")
	case parsed.Method != http.MethodPost:
		return Call{}, fault(line.Number, FaultMethod, "method", "method must be POST.")
	case parsed.URL != c.rules.Endpoint:
		return Call{}, fault(line.Number, FaultURL, "url", "url must be %s, the batch's endpoint.", c.rules.Endpoint)
	case len(c.seen) == c.rules.MaxLines:
		return Call{}, fault(line.Number, FaultTooMany, "", "The file has more than %d requests.", c.rules.MaxLines)
	}
	call, wrong := c.request(line.Number, parsed)
	if wrong == nil {
		c.seen[key] = struct{}{}
	}
	return call, wrong
}

// request reads the line's body as the endpoint would.
func (c *Checker) request(number int, line openaiapi.BatchLine) (Call, *store.BatchFault) {
	call := Call{CustomID: line.CustomID, Body: line.Body}
	var err error
	if c.rules.Endpoint == openaiapi.EndpointEmbeddings {
		var e openaiapi.EmbeddingsRequest
		e, err = openaiapi.ParseEmbeddings(line.Body)
		call.Request.Features = e.Features
	} else {
		call.Request, err = openaiapi.ParseChat(line.Body)
	}
	switch {
	case err != nil:
		return Call{}, Refused(number, err)
	case call.Request.Stream:
		return Call{}, fault(number, FaultInvalid, "body.stream", "A request of a batch cannot be streamed.")
	case !c.rules.SingleModel:
	case c.model == "":
		c.model = call.Request.Model
	case c.model != call.Request.Model:
		return Call{}, fault(number, FaultMixedModels, "body.model", "The model %.*q is not %.*q, that of the lines before. A batch is for one model here.",
			maxModelInFault, call.Request.Model, maxModelInFault, c.model)
	}
	return call, nil
}

// Refused is the fault of a line whose request would have been refused.
func Refused(number int, err error) *store.BatchFault {
	e := inference.AsError(err)
	f := fault(number, string(e.Code), "body", "%s", e.Message)
	if e.Param != "" {
		f.Param = "body." + store.CleanText(e.Param)
	}
	if e.Param == "model" && e.Code == inference.CodeInvalidRequest && e.Message == "model is missing" {
		f.Code = FaultMissing
	}
	return f
}

func unreadable(number int, err error) *store.BatchFault {
	if f, ok := errors.AsType[*openaiapi.BatchField](err); ok {
		if f.Missing {
			return fault(number, FaultMissing, f.Name, "%s is missing.", f.Name)
		}
		what := "a string"
		if f.Name == "body" {
			what = "an object"
		}
		return fault(number, FaultInvalid, f.Name, "%s must be %s.", f.Name, what)
	}
	if errors.Is(err, openaiapi.ErrLineAmbiguous) {
		return fault(number, FaultInvalid, "", "The line has a member more than once.")
	}
	return fault(number, FaultInvalidJSON, "", "The line is not a JSON object.")
}

func fault(number int, code, param, format string, args ...any) *store.BatchFault {
	message := fmt.Sprintf(format, args...)
	if len(message) > maxFaultTextLength {
		message = store.CleanText(message)
	}
	return &store.BatchFault{Code: code, Message: message, Param: param, Line: number}
}
