package store

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"

	"sluice/internal/inference"
	"sluice/internal/webhook"
)

// JobWebhook is what a job says of where its end is to be told, beside its tenant's
// endpoints.
type JobWebhook struct {
	URL    string   `json:"url"`
	Events []string `json:"events,omitempty"` // the types that it wants; empty: all
}

// webhookProblem returns why the job's webhook can never be called, or nothing. Whether
// its address may be one of a private network, the caller knows.
func (j Job) webhookProblem() string {
	var w JobWebhook
	if err := json.Unmarshal(j.Webhook, &w); err != nil {
		return "has a webhook that is none"
	}
	if err := webhook.CheckURL(w.URL, true); err != nil {
		return "has a webhook whose url " + err.Error()
	}
	if err := webhook.CheckTypes(w.Events); err != nil {
		return "has a webhook with a wrong filter: " + err.Error()
	}
	return ""
}

// JobEvents returns what the ends of jobs tell. A line of a batch tells nothing: its batch
// does.
func JobEvents(ended []Job) []Event {
	var events []Event
	for _, j := range ended {
		if j.BatchID != "" {
			continue
		}
		kind := webhook.JobFailed
		switch j.Status {
		case JobCompleted:
			kind = webhook.JobCompleted
		case JobCancelled:
			kind = webhook.JobCancelled
		}
		e := NewEvent(j.Tenant, kind, JobPrefix+j.ID)
		e.Target = j.target(kind)
		events = append(events, e)
	}
	return events
}

// target returns the job's own address for events of that type, or nothing. A webhook that
// cannot be read gets none: the end of a job must not depend on it.
func (j Job) target(kind string) string {
	if j.Webhook == nil || j.webhookProblem() != "" {
		return ""
	}
	var w JobWebhook
	if json.Unmarshal(j.Webhook, &w) != nil || len(w.Events) > 0 && !slices.Contains(w.Events, kind) {
		return ""
	}
	return w.URL
}

// LineCount is what the ends of some of a batch's lines add to the batch.
type LineCount struct {
	BatchID           string
	Completed, Failed int
	Usage             inference.Usage
}

// CountLines returns what the ends of jobs add to their batches, ordered by batch, so that
// calls that overlap take their locks in the same order. Completed is a line whose answer
// is one of success, whatever became of the job.
func CountLines(ended []Job) []LineCount {
	counts := make(map[string]*LineCount)
	for _, j := range ended {
		if j.BatchID == "" {
			continue
		}
		c := counts[j.BatchID]
		if c == nil {
			c = &LineCount{BatchID: j.BatchID}
			counts[j.BatchID] = c
		}
		if j.ResponseStatus >= 200 && j.ResponseStatus < 300 {
			c.Completed++
		} else {
			c.Failed++
		}
		c.Usage.PromptTokens += j.Usage.PromptTokens
		c.Usage.CompletionTokens += j.Usage.CompletionTokens
		c.Usage.CachedTokens += j.Usage.CachedTokens
		c.Usage.ReasoningTokens += j.Usage.ReasoningTokens
	}
	sorted := make([]LineCount, 0, len(counts))
	for c := range maps.Values(counts) {
		sorted = append(sorted, *c)
	}
	slices.SortFunc(sorted, func(a, b LineCount) int { return cmp.Compare(a.BatchID, b.BatchID) })
	return sorted
}
