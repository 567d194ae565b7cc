package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"time"
)

const (
	batchPoll     = 100 * time.Millisecond
	batchPatience = 5 * time.Minute
	besideRate    = 50 // interactive requests a second beside a batch
	besideSlots   = 16 // calls of 50 ms at once: 320 a second
)

// batches runs a batch of many small lines against an upstream that answers at once, and
// two of large lines, one ten times as long as the other, whose memory is looked at.
func (m *measurement) batches(ctx context.Context) error {
	if err := m.batch(ctx, batchFile{lines: m.batchLines / 50, padding: 200}, nil); err != nil {
		return err // what any first batch costs is no batch's own
	}
	start := time.Now()
	u, err := m.watched(func() error {
		return m.batch(ctx, batchFile{lines: m.batchLines, padding: 200}, nil)
	})
	if err != nil {
		return err
	}
	m.figures["batch_rate"] = float64(m.batchLines) / time.Since(start).Seconds()
	m.own("batch_cpu", u.cpuPer(int64(m.batchLines))*1000)
	for _, large := range []struct {
		name  string
		lines int
	}{{"batch_memory_tenth", m.largeLines / 10}, {"batch_memory", m.largeLines}} {
		u, err := m.watched(func() error {
			return m.batch(ctx, batchFile{lines: large.lines, padding: largeLine}, nil)
		})
		if err != nil {
			return err
		}
		m.own(large.name, (u.highest-u.first.rss)/mega)
	}
	return nil
}

// largeLine is the length of a line of which 10,000 are a file of 200 MB.
const largeLine = 20 << 10

// beside loads an upstream that thinks with a few calls a second, alone and while a batch
// has all the rest of the slots.
func (m *measurement) beside(ctx context.Context) error {
	spec := loadSpec{
		Mode: "open", Rate: besideRate, Even: m.even, Connections: closedConnections,
		Warmup: m.warmup, Duration: m.besideTime, Patience: callPatience,
	}
	alone, _, err := m.load(ctx, spec)
	if err != nil {
		return err
	}
	lines := int((spec.Duration+3*spec.Warmup).Seconds()+4) * int(float64(besideSlots)/thinkTime.Seconds())
	begun, ended := make(chan struct{}), make(chan error, 1)
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { ended <- m.batch(work, batchFile{lines: lines, padding: 200}, begun) }()
	select {
	case <-begun:
	case err := <-ended:
		return errors.Join(errors.New("the batch ended before it began"), err)
	}
	with, _, err := m.load(ctx, spec)
	if err != nil {
		return err
	}
	select {
	case err := <-ended:
		return errors.Join(errors.New("the batch ended before the load beside it"), err)
	default:
	}
	cancel()
	<-ended
	m.figures["beside_alone"] = alone.Latency.P99
	m.figures["beside_p50"] = with.Latency.P50
	m.figures["beside_p99"] = with.Latency.P99
	m.figures["beside_ratio"] = with.Latency.P99 / alone.Latency.P99
	return nil
}

// watched runs work and looks at the system's processes before, during and after it.
func (m *measurement) watched(work func() error) (used, error) {
	first, err := readUsage(m.system.pids)
	if err != nil {
		return used{}, err
	}
	u := used{first: first, highest: first.rss}
	done := make(chan error, 1)
	go func() { done <- work() }()
	sample := time.NewTicker(50 * time.Millisecond)
	defer sample.Stop()
	for {
		select {
		case err = <-done:
			last, failed := readUsage(m.system.pids)
			u.last = last
			return u, errors.Join(err, failed)
		case <-sample.C:
			if now, err := readUsage(m.system.pids); err == nil {
				u.highest = max(u.highest, now.rss)
			}
		}
	}
}

// batchFile is an input file: so many lines with so many bytes of text.
type batchFile struct {
	lines, padding int
}

func (f batchFile) write(w io.Writer) error {
	out := bufio.NewWriterSize(w, 64<<10)
	text := strings.Repeat("The river goes by. ", f.padding/19+1)[:f.padding]
	for n := range f.lines {
		_, err := fmt.Fprintf(out, `{"custom_id":"line-%d","method":"POST","url":"/v1/chat/completions","body":`+
			`{"model":"bench","messages":[{"role":"user","content":"%s"}]}}`+"\n", n, text)
		if err != nil {
			return err
		}
	}
	return out.Flush()
}

// batch takes one batch from the upload of its file to its output, which must have every
// line. begun, if there is one, is closed when it is in progress.
func (m *measurement) batch(ctx context.Context, f batchFile, begun chan<- struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, batchPatience)
	defer cancel()
	c := &batchClient{base: "http://" + m.system.address + "/v1", key: m.key, http: &http.Client{}}
	defer c.http.CloseIdleConnections()
	input, err := c.upload(ctx, f)
	if err != nil {
		return err
	}
	b, err := c.create(ctx, input)
	if err != nil {
		return err
	}
	poll := time.NewTicker(batchPoll)
	defer poll.Stop()
	for {
		if begun != nil && b.Status == "in_progress" && b.Counts.Completed > 0 {
			close(begun)
			begun = nil
		}
		switch b.Status {
		case "completed":
			return c.check(ctx, b, f)
		case "failed", "expired", "cancelled":
			return fmt.Errorf("batch %s is %s: %s", b.ID, b.Status, b.Errors)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for batch %s, %d of %d lines: %w", b.ID, b.Counts.Completed, b.Counts.Total, ctx.Err())
		case <-poll.C:
		}
		if err := c.call(ctx, http.MethodGet, "/batches/"+b.ID, "", nil, &b); err != nil {
			return err
		}
	}
}

type batchClient struct {
	base, key string
	http      *http.Client
}

// batchState is what is read of a batch.
type batchState struct {
	ID     string          `json:"id"`
	Status string          `json:"status"`
	Output string          `json:"output_file_id"`
	Errors json.RawMessage `json:"errors"`
	Counts struct {
		Total     int `json:"total"`
		Completed int `json:"completed"`
		Failed    int `json:"failed"`
	} `json:"request_counts"`
}

// upload sends the file as it is written.
func (c *batchClient) upload(ctx context.Context, f batchFile) (id string, err error) {
	read, write := io.Pipe()
	form := multipart.NewWriter(write)
	go func() {
		err := form.WriteField("purpose", "batch")
		part, partErr := form.CreateFormFile("file", "lines.jsonl")
		if err = errors.Join(err, partErr); err == nil {
			err = errors.Join(f.write(part), form.Close())
		}
		write.CloseWithError(err)
	}()
	defer func() { _ = read.Close() }()
	var file struct {
		ID string `json:"id"`
	}
	err = c.call(ctx, http.MethodPost, "/files", form.FormDataContentType(), read, &file)
	return file.ID, err
}

func (c *batchClient) create(ctx context.Context, input string) (b batchState, err error) {
	order := fmt.Sprintf(`{"input_file_id":%q,"endpoint":"/v1/chat/completions","completion_window":"24h"}`, input)
	err = c.call(ctx, http.MethodPost, "/batches", "application/json", strings.NewReader(order), &b)
	return b, err
}

// check counts the lines of the output.
func (c *batchClient) check(ctx context.Context, b batchState, f batchFile) error {
	response, err := c.do(ctx, http.MethodGet, "/files/"+b.Output+"/content", "", nil)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	lines, buffer := 0, make([]byte, 64<<10)
	for {
		n, err := response.Body.Read(buffer)
		lines += bytes.Count(buffer[:n], []byte("\n"))
		switch {
		case errors.Is(err, io.EOF) && lines == f.lines && b.Counts.Completed == f.lines:
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("batch %s of %d lines has %d in its output and counts %d", b.ID, f.lines, lines, b.Counts.Completed)
		case err != nil:
			return fmt.Errorf("read output: %w", err)
		}
	}
}

func (c *batchClient) call(ctx context.Context, method, path, contentType string, body io.Reader, into any) error {
	response, err := c.do(ctx, method, path, contentType, body)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

func (c *batchClient) do(ctx context.Context, method, path, contentType string, body io.Reader) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	request.Header.Set("Authorization", "Bearer "+c.key)
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
		_ = response.Body.Close()
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, response.Status, said)
	}
	return response, nil
}
