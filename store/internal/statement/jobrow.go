package statement

import (
	"encoding/json"
	"fmt"
	"time"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/store"
)

// InsertJobArgs returns the values of a clean job for InsertJob. stamp encodes a time, and
// the zero time as NULL.
func InsertJobArgs(j store.Job, stamp func(time.Time) any) ([]any, error) {
	candidates, err := encodeCandidates(j.Candidates)
	if err != nil {
		return nil, err
	}
	metadata, err := encodeTexts(j.Metadata)
	if err != nil {
		return nil, fmt.Errorf("encode metadata: %w", err)
	}
	own, err := encodeLimits(j.Limits)
	if err != nil {
		return nil, fmt.Errorf("encode limits: %w", err)
	}
	return []any{
		j.ID, j.RequestID, j.Tenant, j.KeyID, j.KeyName, string(j.Kind), j.Model, string(j.Lane), j.BatchID, int64(j.Line), j.CustomID,
		candidates, j.TraceParent, metadata, nullBytes(j.Webhook), stamp(j.CreatedAt), stamp(j.Deadline),
		string(j.Status), int64(j.Epoch), stamp(j.LeasedUntil), own, nullBytes(j.Body),
	}, nil
}

// EndJobArgs returns the values of a clean end for EndJob.
func EndJobArgs(e store.JobEnd, stamp func(time.Time) any) ([]any, error) {
	r := e.Record
	tries, err := EncodeTries(r.Tries)
	if err != nil {
		return nil, err
	}
	tokens := func(n int64) *int64 {
		if !r.Usage.Known {
			return nil
		}
		return &n
	}
	return []any{
		r.JobID, string(e.Status), stamp(e.StartedAt), stamp(e.FinishedAt), stamp(e.ExpiresAt),
		int64(r.Status), nullBytes(e.Response), int64(r.Attempts), tries,
		tokens(r.Usage.PromptTokens), tokens(r.Usage.CompletionTokens), tokens(r.Usage.CachedTokens),
		tokens(r.Usage.ReasoningTokens), r.Usage.Estimated, r.Provider, r.ModelServed, string(r.ErrorCode),
	}, nil
}

// nullBytes makes NULL of nothing: an empty body comes back as none.
func nullBytes(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

// JobRow is one row of jobs on its way into a store.Job. T is how the database's driver
// reads a time that may be NULL.
type JobRow[T any] struct {
	job                                                                          store.Job
	seq                                                                          int64
	created, deadline, notBefore, dispatched, leased, started, finished, expires T
	prompt, completion, cached, reasoning                                        *int64
	candidates                                                                   string
	metadata, tries, limits                                                      *string
}

// Targets returns where the values of JobColumns go, or those of WholeJobColumns.
func (r *JobRow[T]) Targets(whole bool) []any {
	j := &r.job
	targets := []any{
		&j.ID, &j.RequestID, &j.Tenant, &j.KeyID, &j.KeyName, &j.Kind, &j.Model, &j.Lane, &j.BatchID, &j.Line,
		&j.CustomID, &r.candidates, &j.TraceParent, &r.metadata, &j.Webhook, &r.created, &r.deadline, &j.Status, &j.Epoch,
		&r.notBefore, &r.dispatched, &j.Provider, &r.seq, &r.leased, &r.started, &r.finished, &r.expires, &j.ResponseStatus,
		&j.Attempts, &r.tries, &r.prompt, &r.completion, &r.cached, &r.reasoning, &j.Usage.Estimated,
		&j.ProviderServed, &j.ModelServed, &j.ErrorCode, &r.limits,
	}
	if whole {
		targets = append(targets, &j.Body, &j.Response)
	}
	return targets
}

// Job returns the job that was read. read decodes a time, NULL as the zero time.
func (r *JobRow[T]) Job(read func(T) time.Time) (store.Job, error) {
	j := r.job
	j.Seq = uint64(r.seq)
	j.CreatedAt, j.Deadline, j.DispatchedAt = read(r.created), read(r.deadline), read(r.dispatched)
	j.NotBefore, j.LeasedUntil, j.StartedAt = read(r.notBefore), read(r.leased), read(r.started)
	j.FinishedAt, j.ExpiresAt = read(r.finished), read(r.expires)
	j.Usage.Known = r.prompt != nil
	j.Usage.PromptTokens, j.Usage.CompletionTokens = zeroNull(r.prompt), zeroNull(r.completion)
	j.Usage.CachedTokens, j.Usage.ReasoningTokens = zeroNull(r.cached), zeroNull(r.reasoning)
	var err error
	if j.Candidates, err = decodeCandidates(r.candidates); err != nil {
		return store.Job{}, fmt.Errorf("job %s: %w", j.ID, err)
	}
	if j.Tries, err = DecodeTries(r.tries); err != nil {
		return store.Job{}, fmt.Errorf("job %s: %w", j.ID, err)
	}
	if j.Metadata, err = decodeTexts(r.metadata); err != nil {
		return store.Job{}, fmt.Errorf("metadata of job %s: %w", j.ID, err)
	}
	if j.Limits, err = decodeLimits(r.limits); err != nil {
		return store.Job{}, fmt.Errorf("limits of job %s: %w", j.ID, err)
	}
	return j, nil
}

// encodeLimits returns limits as they are kept: a JSON object, or nil, which stands for
// NULL, for none.
func encodeLimits(l *limits.Limits) (*string, error) {
	if l == nil {
		return nil, nil //nolint:nilnil // NULL is a value like any other
	}
	b, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	text := string(b)
	return &text, nil
}

func decodeLimits(text *string) (*limits.Limits, error) {
	if text == nil {
		return nil, nil //nolint:nilnil // as above
	}
	l := new(limits.Limits)
	err := json.Unmarshal([]byte(*text), l)
	return l, err
}

func zeroNull(n *int64) int64 {
	if n == nil {
		return 0
	}
	return *n
}

// candidate is an inference.Candidate in JSON. Its reasons go by their names, because
// their numbers are no promise between versions.
type candidate struct {
	Provider string   `json:"provider"`
	Model    string   `json:"model"`
	On       []string `json:"on,omitempty"`
}

func encodeCandidates(candidates []inference.Candidate) (string, error) {
	list := make([]candidate, len(candidates))
	for i, c := range candidates {
		list[i] = candidate{Provider: c.Provider, Model: c.Model, On: c.On.Names()}
	}
	b, err := json.Marshal(list)
	if err != nil {
		return "", fmt.Errorf("encode candidates: %w", err)
	}
	return string(b), nil
}

func decodeCandidates(text string) ([]inference.Candidate, error) {
	var list []candidate
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("decode candidates: %w", err)
	}
	candidates := make([]inference.Candidate, len(list))
	for i, c := range list {
		candidates[i] = inference.Candidate{Provider: c.Provider, Model: c.Model}
		for _, name := range c.On {
			reason, _ := inference.ReasonNamed(name) // one of a later version stands for nothing here
			candidates[i].On |= reason
		}
	}
	return candidates, nil
}

// encodeTexts returns a JSON object, or nil, which stands for NULL, for no texts.
func encodeTexts(texts map[string]string) (*string, error) {
	if len(texts) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(texts)
	if err != nil {
		return nil, err
	}
	text := string(b)
	return &text, nil
}

func decodeTexts(text *string) (map[string]string, error) {
	if text == nil {
		return nil, nil
	}
	var texts map[string]string
	err := json.Unmarshal([]byte(*text), &texts)
	return texts, err
}
