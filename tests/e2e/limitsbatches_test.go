package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/stretchr/testify/require"
)

// stormBatch is one of the storm's, and the lines that the book knows.
type stormBatch struct {
	id    string
	key   *holder
	lines []*entry
}

// batch has a few requests made as lines of a batch, and some of the batches cancelled in
// the middle. What a kill keeps it from is left as it is.
func (s *storm) batch(random *rand.Rand, in *ingress, first *entry) {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	b := &stormBatch{key: first.key, lines: []*entry{first}}
	for n := range random.IntN(4) {
		e := s.ask(first.key, first.model, fmt.Sprintf("%s-%d", first.name, n), first.most, first.gives)
		e.lasts = first.lasts
		b.lines = append(b.lines, e)
	}
	var input strings.Builder
	s.book.mu.Lock()
	for _, e := range b.lines {
		e.kind, e.deadline = "line", time.Now().Add(time.Hour)
		fmt.Fprintf(&input, `{"custom_id":%q,"method":"POST","url":"/v1/chat/completions","body":%s}`+"\n", e.name, e.body(false))
	}
	s.book.mu.Unlock()
	api := in.as(first.key.secret).api
	file, err := api.Files.New(ctx, openai.FileNewParams{
		File: openai.File(strings.NewReader(input.String()), "lines.jsonl", "application/jsonl"), Purpose: openai.FilePurposeBatch,
	})
	if err != nil {
		return
	}
	made, err := api.Batches.New(ctx, openai.BatchNewParams{
		InputFileID: file.ID, Endpoint: openai.BatchNewParamsEndpointV1ChatCompletions, CompletionWindow: openai.BatchNewParamsCompletionWindow24h,
	})
	if err != nil {
		return
	}
	b.id = made.ID
	s.mu.Lock()
	s.batches = append(s.batches, b)
	s.mu.Unlock()
	if random.IntN(3) > 0 {
		pause(time.Duration(random.IntN(600)) * time.Millisecond)
		s.cancelBatch(ctx, s.door(random.IntN(len(s.doors))), b)
	}
}

func (s *storm) cancelBatch(ctx context.Context, in *ingress, b *stormBatch) {
	for _, e := range b.lines {
		s.book.leaves(e)
	}
	api := in.as(b.key.secret).api
	_, _ = api.Batches.Cancel(ctx, b.id) // it may have ended, or the ingress
}

// endBatches cancels what is left of the batches, those too of which no client was told,
// and waits until all have ended.
func (s *storm) endBatches() {
	s.t.Helper()
	for _, b := range s.batches {
		s.cancelBatch(s.t.Context(), s.door(0), b)
	}
	for _, h := range s.keys {
		api := s.door(0).as(h.secret).api
		require.Eventually(s.t, func() bool {
			left := 0
			list := api.Batches.ListAutoPaging(s.t.Context(), openai.BatchListParams{Limit: openai.Int(100)})
			for list.Next() {
				switch b := list.Current(); b.Status {
				case openai.BatchStatusValidating, openai.BatchStatusInProgress:
					_, _ = api.Batches.Cancel(s.t.Context(), b.ID) // the next look tells
					left++
				case openai.BatchStatusFinalizing, openai.BatchStatusCancelling:
					left++
				}
			}
			return left == 0 && list.Err() == nil
		}, patience, pollEvery, "batches of %s do not end", h.tenant)
	}
}
