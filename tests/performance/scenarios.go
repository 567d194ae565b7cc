package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// figures are one system's measurements by the names in the table of metrics.
type figures map[string]float64

// measurement is one system in one scenario.
type measurement struct {
	*bench
	plan
	system   *running
	seed     uint64
	figures  figures
	failures map[string]int
}

// measure starts a system, runs the scenario on it and stops it.
func (b *bench) measure(ctx context.Context, p plan, system, scenario string, round int) (*measurement, error) {
	m := &measurement{
		bench: b, plan: p, seed: uint64(round),
		figures: figures{}, failures: map[string]int{},
	}
	at, run := m.scenario(scenario)
	var err error
	if m.system, err = b.start(ctx, system, at); err != nil {
		return nil, err
	}
	if err := errors.Join(run(ctx), m.system.stop()); err != nil {
		return nil, fmt.Errorf("measure %s of %s: %w", scenario, system, err)
	}
	return m, nil
}

func (m *measurement) scenario(name string) (place, func(context.Context) error) {
	switch name {
	case scenarioStreams:
		return place{targets: []string{m.upstream}, concurrency: 2 * streamCount}, m.streams
	case scenarioOverload:
		return place{targets: []string{m.thinking}, concurrency: overloadConcurrency, boundProxy: true}, m.overloaded
	case scenarioBatch:
		return place{targets: []string{m.upstream}, concurrency: callConcurrency}, m.batches
	case scenarioBeside:
		return place{targets: []string{m.thinking}, concurrency: besideSlots}, m.beside
	case scenarioFleet:
		return place{targets: m.members, concurrency: slotsOf(fleetMembers())}, m.fleet
	case scenarioCache:
		return place{targets: []string{m.upstream}, concurrency: callConcurrency}, m.cached
	default:
		return place{targets: []string{m.upstream}, concurrency: callConcurrency}, m.calls
	}
}

func (m *measurement) calls(ctx context.Context) error {
	for _, at := range []struct {
		rate     float64
		duration time.Duration
	}{{lowRate, m.low}, {highRate, m.high}} {
		result, used, err := m.load(ctx, loadSpec{
			Mode: "open", Rate: at.rate, Even: m.even, Connections: closedConnections, Distinct: true,
			Warmup: m.warmup, Duration: at.duration, Patience: callPatience,
		})
		if err != nil {
			return err
		}
		m.figures[fmt.Sprintf("p50_%.0f", at.rate)] = result.Latency.P50
		m.figures[fmt.Sprintf("p99_%.0f", at.rate)] = result.Latency.P99
		if at.rate == highRate {
			m.own("cpu", used.cpuPer(result.Good)*1000)
		}
	}
	result, used, err := m.load(ctx, loadSpec{
		Mode: "closed", Connections: closedConnections, Distinct: true,
		Warmup: m.warmup, Duration: m.most, Patience: callPatience,
	})
	if err != nil {
		return err
	}
	m.figures["most"] = float64(result.Good) / result.Seconds
	m.own("cpu_most", used.cpuPer(result.Good)*1000)
	m.own("rss", used.last.rss/mega)
	return nil
}

// cached sends the same request again and again, so that all but the first are answered
// from the cache.
func (m *measurement) cached(ctx context.Context) error {
	result, _, err := m.load(ctx, loadSpec{
		Mode: "open", Rate: highRate, Even: m.even, Connections: closedConnections,
		Warmup: m.warmup, Duration: m.high, Patience: callPatience,
	})
	if err != nil {
		return err
	}
	m.figures["hit_p50"], m.figures["hit_p99"] = result.Latency.P50, result.Latency.P99
	result, used, err := m.load(ctx, loadSpec{
		Mode: "closed", Connections: closedConnections,
		Warmup: m.warmup, Duration: m.most, Patience: callPatience,
	})
	if err != nil {
		return err
	}
	m.figures["hit_most"] = float64(result.Good) / result.Seconds
	m.own("hit_cpu", used.cpuPer(result.Good)*1000)
	return nil
}

func (m *measurement) streams(ctx context.Context) error {
	tokens := m.streamTokens()
	spec := loadSpec{Mode: "streams", Rate: 100, Streams: 20, Tokens: 25, Patience: streamPatience}
	if _, _, err := m.load(ctx, spec); err != nil { // what any first stream costs is no stream's own
		return err
	}
	before, err := readUsage(m.system.pids)
	if err != nil {
		return err
	}
	spec.Rate, spec.Streams, spec.Tokens = streamCount/m.ramp.Seconds(), streamCount, tokens
	spec.Patience += time.Duration(tokens) * tokenGap
	result, used, err := m.load(ctx, spec)
	if err != nil {
		return err
	}
	m.figures["first_p50"] = result.FirstToken.P50
	m.figures["first_p99"] = result.FirstToken.P99
	m.figures["gap_p50"] = result.Gap.P50
	m.figures["gap_p99"] = result.Gap.P99
	m.figures["gap_excess"] = result.Gap.P99 - milliseconds(tokenGap)
	m.own("stream_memory", (used.highest-before.rss)/streamCount/kilo)
	m.own("token_cpu", used.cpuPer(result.Good)*1000)
	return nil
}

func (m *measurement) overloaded(ctx context.Context) error {
	closed, _, err := m.load(ctx, loadSpec{
		Mode: "closed", Connections: overloadConcurrency,
		Warmup: m.warmup, Duration: m.most, Patience: overloadPatience,
	})
	if err != nil {
		return err
	}
	result, used, err := m.load(ctx, loadSpec{
		Mode: "open", Rate: overloadRate, Even: m.even, Connections: closedConnections,
		Warmup: m.warmup, Duration: m.overload, Patience: overloadPatience,
	})
	if err != nil {
		return err
	}
	alone, goodput := float64(closed.Good)/closed.Seconds, float64(result.Good)/result.Seconds
	m.figures["closed"] = alone
	m.figures["goodput"] = goodput
	m.figures["goodput_share"] = 100 * goodput / max(alone, 1)
	m.figures["refused_share"] = 100 * float64(result.Refusals.Count) / (overloadRate * result.Seconds)
	m.figures["no_retry_after"] = float64(result.NoRetryAfter)
	if result.Refusals.Count > 0 {
		m.figures["refused_p50"] = result.Refusals.P50
	}
	m.figures["accepted_p50"] = result.Latency.P50
	m.own("peak", used.last.peak/mega)
	return nil
}

// own notes a figure of the system's own processes; direct has none.
func (m *measurement) own(name string, value float64) {
	if len(m.system.pids) > 0 {
		m.figures[name] = value
	}
}

const (
	kilo = 1 << 10
	mega = 1 << 20
)

// used is what the system's processes used during one load.
type used struct {
	first, last usage   // at the begin and the end of the measured time
	highest     float64 // the most resident memory seen in between, in bytes
}

// cpuPer is CPU time in milliseconds.
func (u used) cpuPer(n int64) float64 {
	return milliseconds(u.last.cpu-u.first.cpu) / float64(max(n, 1))
}

// load runs a load process against the system and watches the system meanwhile.
func (m *measurement) load(ctx context.Context, spec loadSpec) (*loadResult, used, error) {
	spec.Address, spec.Key, spec.Seed = m.system.address, m.key, m.seed
	order, err := json.Marshal(spec)
	if err != nil {
		return nil, used{}, fmt.Errorf("write the load's specification: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, used{}, fmt.Errorf("find own binary: %w", err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, used{}, fmt.Errorf("make pipe: %w", err)
	}
	defer func() { _ = read.Close() }()
	p, err := startProcess(m.dir, "load", write, bytes.NewReader(order), self, "load")
	_ = write.Close()
	if err != nil {
		return nil, used{}, err
	}
	defer p.kill()
	defer context.AfterFunc(ctx, func() { _ = read.SetReadDeadline(time.Now()) })()
	result, watched, err := watch(read, m.system.pids)
	if err != nil {
		return nil, used{}, errors.Join(p.failed("gave no result"), err, ctx.Err())
	}
	for why, n := range result.Failures {
		m.failures[why] += n
	}
	return result, watched, nil
}

// watch follows a load's messages and looks at the system's processes at each, and
// now and then in between.
func watch(messages io.Reader, pids []int) (*loadResult, used, error) {
	var u used
	var result *loadResult
	var failed error
	look := func() usage {
		now, err := readUsage(pids)
		failed = errors.Join(failed, err)
		u.highest = max(u.highest, now.rss)
		return now
	}
	sample := time.NewTicker(200 * time.Millisecond)
	defer sample.Stop()
	measured := false
	lines := readMessages(messages)
	for {
		select {
		case <-sample.C:
			if measured {
				look()
			}
		case line, more := <-lines:
			if !more && result == nil {
				return nil, u, errors.Join(failed, errors.New("the load process ended early"))
			} else if !more {
				return result, u, failed
			}
			switch line.Moment {
			case momentBegin, momentOpen:
				measured, u.first = true, look()
			case momentEnd, momentFinish:
				measured, u.last = false, look()
			case momentResult:
				result = line.Result
			}
		}
	}
}

// readMessages gives a load's messages until its stdout ends. The caller takes all.
func readMessages(in io.Reader) <-chan message {
	lines := make(chan message)
	go func() {
		defer close(lines)
		decoder := json.NewDecoder(in)
		for {
			var line message
			if decoder.Decode(&line) != nil {
				return
			}
			lines <- line
		}
	}()
	return lines
}
