package batch

import (
	"bytes"
	"encoding/json"
	"strconv"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/store"
)

// The codes of lines that were not done.
const (
	codeExpired   = "batch_expired"
	codeCancelled = "batch_cancelled"
	codePurged    = string(inference.CodePurged)
)

// AppendLine appends what came of a line, with the end of the line. The same job gives the
// same bytes. A job that was answered has its answer, a failed one, too; one that was
// never done has an error in its place.
func AppendLine(dst []byte, job *store.Job) []byte {
	dst = append(dst, `{"id":"batch_req_`...)
	dst = append(dst, job.ID...)
	dst = append(dst, `","custom_id":`...)
	dst = openaiapi.AppendString(dst, job.CustomID)
	dst = append(dst, `,"response":`...)
	code, message := undone(job)
	if code == "" {
		return append(appendResponse(dst, job), ",\"error\":null}\n"...)
	}
	dst = append(dst, `null,"error":{"code":`...)
	dst = openaiapi.AppendString(dst, code)
	dst = append(dst, `,"message":`...)
	dst = openaiapi.AppendString(dst, message)
	return append(dst, "}}\n"...)
}

// undone says why the line has no answer, or nothing if it has one.
func undone(job *store.Job) (code, message string) {
	switch {
	case job.Status == store.JobExpired:
		return codeExpired, "The batch's completion window ended before this request was done."
	case job.Status == store.JobCancelled && job.ErrorCode == inference.CodePurged:
		return codePurged, "An operator has emptied the queue in which this request waited. It was not done."
	case job.Status == store.JobCancelled:
		return codeCancelled, "The batch was cancelled before this request was done."
	case job.ResponseStatus == 0 || len(job.Response) == 0:
		return string(job.ErrorCode), "The request failed, and no answer was kept."
	}
	return "", ""
}

func appendResponse(dst []byte, job *store.Job) []byte {
	dst = append(dst, `{"status_code":`...)
	dst = strconv.AppendInt(dst, int64(job.ResponseStatus), 10)
	dst = append(dst, `,"request_id":`...)
	dst = openaiapi.AppendString(dst, job.RequestID)
	dst = append(dst, `,"body":`...)
	// An upstream may write its answer on many lines; the file has one for it.
	buf := bytes.NewBuffer(dst)
	if json.Compact(buf, job.Response) != nil {
		return append(openaiapi.AppendString(dst, string(job.Response)), '}')
	}
	return append(buf.Bytes(), '}')
}
