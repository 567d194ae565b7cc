package sim

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"path"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"sluice/internal/inference"
	"sluice/providers"
)

// Defaults and bounds.
const (
	DefaultModel            = "sim"
	DefaultCompletionTokens = 64
	MaxCompletionTokens     = 10_000
	maxBatch                = 64 // chunks handed on at a time when there is no pace to keep
)

// Options is one simulated upstream's configuration.
type Options struct {
	Name string // the provider's name, for messages

	// FirstTokenDelay passes before the first token of every answer.
	FirstTokenDelay time.Duration

	// TokensPerSecond is the pace of the tokens after the first; zero means no wait.
	TokensPerSecond float64

	// FailureRate, from 0 to 1, is the share of calls that fail with a retryable
	// error when their first token is due. Which ones is decided by a hash of Seed,
	// the request's body and the number of the call: the same calls in the same order
	// fail alike in every run, and a retried call is decided anew.
	FailureRate float64
	Seed        uint64

	// CompletionTokens is the length of an answer that nothing cuts short.
	CompletionTokens int

	// Models are names or globs (path.Match) of the models served; only "sim" if empty.
	Models []string
}

// Provider is one simulated upstream.
type Provider struct {
	opts  Options
	calls atomic.Uint64

	memory *memory // of requests that misbehave a limited number of times
}

var _ providers.Provider = (*Provider)(nil)

// New checks the options and returns the provider.
func New(opts Options) (*Provider, error) {
	switch {
	case opts.FirstTokenDelay < 0:
		return nil, errors.New("first token delay must not be negative")
	case !(opts.TokensPerSecond >= 0 && opts.TokensPerSecond <= maxRate):
		return nil, errors.New("tokens per second must be from 0 to 1e9")
	case !(opts.FailureRate >= 0 && opts.FailureRate <= 1):
		return nil, errors.New("failure rate must be from 0 to 1")
	case opts.CompletionTokens < 0 || opts.CompletionTokens > MaxCompletionTokens:
		return nil, fmt.Errorf("completion tokens must be from 0 to %d", MaxCompletionTokens)
	}
	if opts.Name == "" {
		opts.Name = "sim"
	}
	if opts.CompletionTokens == 0 {
		opts.CompletionTokens = DefaultCompletionTokens
	}
	opts.Models = slices.Clone(opts.Models)
	if len(opts.Models) == 0 {
		opts.Models = []string{DefaultModel}
	}
	for _, model := range opts.Models {
		if _, err := path.Match(model, ""); err != nil {
			return nil, fmt.Errorf("read model pattern %q: %w", model, err)
		}
	}
	return &Provider{opts: opts, memory: remembered}, nil
}

// Generate returns a whole answer after the time that streaming it would take.
func (p *Provider) Generate(ctx context.Context, call providers.Call) (*providers.Response, error) {
	if call.Kind == inference.KindEmbeddings {
		return p.embed(ctx, call)
	}
	a, c, err := p.begin(ctx, call)
	if err != nil {
		return nil, err
	}
	if err := wait(ctx, c.due(c.fault.reach(a.steps())-1)); err != nil {
		return nil, err
	}
	if c.fault.kind != faultNone {
		return nil, p.stray(ctx, c.fault)
	}
	return &providers.Response{Body: a.completion(), Model: a.model, Usage: a.usage()}, nil
}

// StreamGenerate hands on the answer's chunks, each choice's next token when it is due.
func (p *Provider) StreamGenerate(ctx context.Context, call providers.Call, emit providers.Emit) (providers.Summary, error) {
	a, c, err := p.begin(ctx, call)
	if err != nil {
		return providers.Summary{}, err
	}
	summary := func(step int) providers.Summary {
		return providers.Summary{Model: a.model, Usage: a.usageAfter(step)}
	}
	steps := c.fault.reach(a.steps())
	batch := a.roleChunks()
	for step := range steps {
		if err := pace(ctx, c, step, &batch, emit); err != nil {
			return summary(step), err
		}
		batch = append(batch, a.tokenChunks(step)...)
	}
	if c.fault.kind == faultNone {
		batch = append(batch, a.finishChunks()...)
		if call.IncludeUsage {
			batch = append(batch, a.usageChunk())
		}
	}
	if err := ended(ctx); err != nil {
		return summary(steps), err
	}
	if err := emit(batch); err != nil {
		return summary(steps), fmt.Errorf("emit chunks: %w", err)
	}
	if c.fault.kind == faultNone {
		return summary(steps), nil
	}
	return providers.Summary{Model: a.model, Usage: a.estimateAfter(steps, call.Body)}, p.stray(ctx, c.fault)
}

// pace waits until the step's token is due. What is in the batch goes out first if
// there is a wait ahead, or when it has grown large.
func pace(ctx context.Context, c *course, step int, batch *[][]byte, emit providers.Emit) error {
	due := c.due(step)
	ahead := time.Until(due) > 0
	if step > 0 && (ahead || step == 1 || len(*batch) >= maxBatch) {
		if err := emit(*batch); err != nil {
			return fmt.Errorf("emit chunks: %w", err)
		}
		*batch = (*batch)[:0]
	}
	return wait(ctx, due)
}

// Capabilities returns what the configuration says. Images count as one token each;
// tools and schemas are read over.
func (p *Provider) Capabilities(context.Context) (providers.Capabilities, error) {
	return providers.Capabilities{
		Traits: inference.Traits{Chat: true, Streaming: true, Images: true, Embeddings: true},
		Models: slices.Clone(p.opts.Models),
	}, nil
}

// Close does nothing: there is nothing to free.
func (p *Provider) Close() error { return nil }

// begin makes the answer, waits until its first token is due, and lets the call fail
// if it is to fail there.
func (p *Provider) begin(ctx context.Context, call providers.Call) (*answer, *course, error) {
	turn := p.calls.Add(1)
	if call.Kind != inference.KindChat {
		return nil, nil, inference.Errorf(inference.CodeInvalidRequest, "%s does not serve requests of this kind in this way", p.opts.Name)
	}
	req, err := parseRequest(call.Body)
	if err != nil {
		return nil, nil, p.reject(err.Error(), "")
	}
	d, err := parseDrill(req.Sim, call.Kind)
	if err != nil {
		return nil, nil, err
	}
	if call.Model != "" {
		req.Model = call.Model
	}
	length := p.opts.CompletionTokens
	if d != nil && d.tokens != nil {
		length = *d.tokens
	}
	c := p.newCourse(call, d)
	a := newAnswer(req, length, p.hash(call.Body, turn))
	a.created = c.start.Unix()
	if err := p.open(ctx, call, c, turn); err != nil {
		return nil, nil, err
	}
	if c.fault.kind == faultFiltered {
		c.fault = fault{}
		a.holdBack()
	}
	return a, c, nil
}

func (p *Provider) fails(body []byte, turn uint64) bool {
	const whole = 1 << 53 // what a float64 holds exactly
	return float64(p.hash(body, turn)>>11)/whole < p.opts.FailureRate
}

func (p *Provider) hash(body []byte, turn uint64) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(body) // a hash never fails
	_, _ = h.Write(strconv.AppendUint(strconv.AppendUint([]byte{0}, turn, 16), p.opts.Seed, 36))
	return scramble(h.Sum64())
}

// scramble spreads a hash over all bits: FNV's upper ones hardly depend on the last
// bytes. The constants are those of the SplitMix64 generator.
func scramble(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
