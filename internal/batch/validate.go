package batch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/store"
)

// Bounds of what validation holds and stores at once.
const (
	chunkLines = 500 // unless a test has fewer
	chunkBytes = 4 << 20
	idsPage    = store.MaxLineIDs
)

// validation reads a batch's file. Lines are stored until the first fault; from then on
// the batch is lost, and it reads on only to tell of more faults.
type validation struct {
	engine  *Engine
	batch   *store.Batch
	route   Router
	checker *Checker
	line    int   // the last one that is stored
	end     int64 // where it ends
	chunk   []store.Job
	bytes   int // of the bodies in chunk
	faults  []store.BatchFault
}

// validate brings a batch from its file into the database. A validation that was broken
// off goes on behind the last line that is stored: how far the file was read is stored
// with the lines.
func (e *Engine) validate(ctx context.Context, b *store.Batch) error {
	if len(b.Faults) > 0 { // they are stored when all of them are found
		return e.fail(ctx, b)
	}
	v := &validation{engine: e, batch: b, end: b.ReadBytes, checker: NewChecker(Rules{
		Endpoint: b.Endpoint, MaxLines: e.opt.MaxLines, MaxLineBytes: e.opt.MaxLineBytes, SingleModel: e.opt.SingleModel,
	})}
	err := v.run(ctx)
	if f := fileFault(err); f != nil {
		v.faults, err = append(v.faults[:0], *f), nil
	}
	if err != nil {
		return fmt.Errorf("validate batch %s: %w", b.ID, err)
	}
	if len(v.faults) == 0 {
		if err := e.opt.Store.BeginBatch(ctx, e.opt.Owner, b.ID, time.Now()); err != nil {
			return fmt.Errorf("begin batch %s: %w", b.ID, err)
		}
		return nil
	}
	if err := e.opt.Store.AddLines(ctx, e.opt.Owner, b.ID, nil, v.end, v.faults); err != nil {
		return fmt.Errorf("store faults of batch %s: %w", b.ID, err)
	}
	return e.fail(ctx, b)
}

func (e *Engine) fail(ctx context.Context, b *store.Batch) error {
	now := time.Now()
	if err := e.opt.Store.FailBatch(ctx, e.opt.Owner, b.ID, now, now.Add(e.opt.Retention)); err != nil {
		return fmt.Errorf("fail batch %s: %w", b.ID, err)
	}
	e.opt.Ended()
	return nil
}

// fileFault says what an error that no repetition heals means for the batch.
func fileFault(err error) *store.BatchFault {
	refused, isRefused := errors.AsType[*inference.Error](err)
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, queue.ErrNoFile):
		return fault(0, FaultFileGone, "input_file_id", "The input file is not there any more: it was deleted, or it has expired.")
	case errors.Is(err, queue.ErrFileDamaged):
		return fault(0, FaultFileDamaged, "input_file_id", "The input file's content is damaged. Upload it again.")
	case isRefused:
		return fault(0, string(refused.Code), refused.Param, "%s", refused.Message)
	}
	return nil
}

func (v *validation) run(ctx context.Context) error {
	e, b := v.engine, v.batch
	var err error
	if v.route, err = e.opt.Routes(ctx, b); err != nil {
		return err
	}
	if err := v.recall(ctx); err != nil {
		return err
	}
	lines, err := v.open(ctx, b.ReadBytes, v.line)
	if err != nil {
		return err
	}
	for {
		line, err := lines.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		more, err := v.take(ctx, line)
		if err != nil || !more {
			return err
		}
	}
	if v.checker.Lines() == 0 && len(v.faults) == 0 {
		v.faults = append(v.faults, *fault(0, FaultEmpty, "input_file_id", "The file has no requests."))
	}
	return v.flush(ctx)
}

// recall learns what was stored before: the custom_ids, the last line and its batch's
// model, which is that of the first one.
func (v *validation) recall(ctx context.Context) error {
	for {
		ids, err := v.engine.opt.Store.LineIDs(ctx, v.batch.ID, v.line, idsPage)
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			break
		}
		for _, id := range ids {
			v.checker.Know(id.CustomID)
			v.line = id.Line
		}
	}
	v.checker.Expect(v.batch.Model)
	return nil
}

// open returns a reader of the file's lines from the offset on, behind that line.
func (v *validation) open(ctx context.Context, offset int64, line int) (*LineReader, error) {
	if _, err := v.engine.opt.Files.File(ctx, v.batch.Tenant, v.batch.InputFile, time.Now()); err != nil {
		return nil, err
	}
	content, err := v.engine.opt.Contents.OpenFile(ctx, v.batch.InputFile, offset)
	if err != nil {
		return nil, err
	}
	var data []byte
	read := func(p []byte) (int, error) {
		if len(data) == 0 {
			var err error
			if data, err = content.Next(ctx); err != nil {
				return 0, err
			}
			if len(data) == 0 {
				return 0, io.EOF
			}
		}
		n := copy(p, data)
		data = data[n:]
		return n, nil
	}
	return NewLineReader(reader(read), v.engine.opt.MaxLineBytes, offset, line), nil
}

// reader makes a function an io.Reader.
type reader func(p []byte) (int, error)

func (r reader) Read(p []byte) (int, error) { return r(p) }

// take checks a line and keeps it. more is false when no further line is of interest.
func (v *validation) take(ctx context.Context, line Line) (more bool, err error) {
	call, wrong := v.checker.Check(line)
	var candidates []inference.Candidate
	if wrong == nil {
		if candidates, err = v.route(&call.Request); err != nil {
			if _, refused := errors.AsType[*inference.Error](err); !refused {
				return false, err
			}
			wrong = Refused(line.Number, err)
		}
	}
	if wrong != nil {
		v.faults = append(v.faults, *wrong)
		return len(v.faults) < maxFaults && wrong.Code != FaultTooMany, nil
	}
	if len(v.faults) > 0 {
		return true, nil
	}
	if len(v.chunk) >= v.engine.chunk || len(v.chunk) > 0 && v.bytes+len(call.Body) > chunkBytes {
		if err := v.flush(ctx); err != nil {
			return false, err
		}
	}
	v.chunk = append(v.chunk, v.job(line, &call, candidates))
	v.bytes += len(call.Body)
	v.end = line.End
	return true, nil
}

// flush stores the lines that are kept.
func (v *validation) flush(ctx context.Context) error {
	if len(v.chunk) == 0 || len(v.faults) > 0 {
		return nil
	}
	if err := v.engine.opt.Store.AddLines(ctx, v.engine.opt.Owner, v.batch.ID, v.chunk, v.end, nil); err != nil {
		return err
	}
	v.chunk, v.bytes = v.chunk[:0], 0
	return nil
}

func (v *validation) job(line Line, call *Call, candidates []inference.Candidate) store.Job {
	b := v.batch
	id := queue.NewJobID(v.engine.opt.Owner, time.Now())
	kind := inference.KindChat
	if b.Endpoint == openaiapi.EndpointEmbeddings {
		kind = inference.KindEmbeddings
	}
	var own *limits.Limits
	if b.Caller != nil {
		own = b.Caller.Limits
	}
	return store.Job{
		ID: id, RequestID: "req_" + id, Tenant: b.Tenant, KeyID: b.KeyID, KeyName: b.KeyName, Limits: own, Kind: kind,
		Model: call.Request.Model, Lane: inference.LaneBatch, Body: bytes.Clone(call.Body), Candidates: candidates,
		CreatedAt: b.CreatedAt, Deadline: b.ExpiresAt, BatchID: b.ID, Line: line.Number, CustomID: call.CustomID,
	}
}
