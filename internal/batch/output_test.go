package batch

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/store"
)

func TestOutputLines(t *testing.T) {
	t.Parallel()
	answered := store.Job{ID: "abc", CustomID: "a\"1", RequestID: "req_1", Status: store.JobCompleted, ResponseStatus: 200, Response: []byte("{\n \"n\": 1.0,\t\"s\": \"\\u2028 <\"\n}")}
	failed := answered
	failed.Status, failed.ResponseStatus, failed.Response = store.JobFailed, 400, []byte(`{"error":{"message":"no"}}`)
	strange := answered
	strange.Response = []byte("no JSON\n")
	lost := store.Job{ID: "abc", CustomID: "x", Status: store.JobFailed, ErrorCode: "worker_lost"}
	for name, c := range map[string]struct {
		job  store.Job
		want string
	}{
		"an answer":     {answered, `{"id":"batch_req_abc","custom_id":"a\"1","response":{"status_code":200,"request_id":"req_1","body":{"n":1.0,"s":"\u2028 <"}},"error":null}`},
		"a refusal":     {failed, `{"id":"batch_req_abc","custom_id":"a\"1","response":{"status_code":400,"request_id":"req_1","body":{"error":{"message":"no"}}},"error":null}`},
		"no JSON":       {strange, `{"id":"batch_req_abc","custom_id":"a\"1","response":{"status_code":200,"request_id":"req_1","body":"no JSON\n"},"error":null}`},
		"no answer":     {lost, `{"id":"batch_req_abc","custom_id":"x","response":null,"error":{"code":"worker_lost","message":"The request failed, and no answer was kept."}}`},
		"its time over": {store.Job{ID: "abc", CustomID: "x", Status: store.JobExpired}, `{"id":"batch_req_abc","custom_id":"x","response":null,"error":{"code":"batch_expired","message":"The batch's completion window ended before this request was done."}}`},
		"purged":        {store.Job{ID: "abc", CustomID: "x", Status: store.JobCancelled, ErrorCode: inference.CodePurged}, `{"id":"batch_req_abc","custom_id":"x","response":null,"error":{"code":"purged","message":"An operator has emptied the queue in which this request waited. It was not done."}}`},
		"taken back":    {store.Job{ID: "abc", CustomID: "x", Status: store.JobCancelled, ErrorCode: inference.CodeCancelled}, `{"id":"batch_req_abc","custom_id":"x","response":null,"error":{"code":"batch_cancelled","message":"The batch was cancelled before this request was done."}}`},
		"cancelled":     {store.Job{ID: "abc", CustomID: "x", Status: store.JobCancelled}, `{"id":"batch_req_abc","custom_id":"x","response":null,"error":{"code":"batch_cancelled","message":"The batch was cancelled before this request was done."}}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want+"\n", string(AppendLine(nil, &c.job)))
			require.Equal(t, "before"+c.want+"\n", string(AppendLine([]byte("before"), &c.job)))
		})
	}
}

func FuzzAppendLine(f *testing.F) {
	f.Add("a", []byte("{\"a\":\n1}"), 200)
	f.Fuzz(func(t *testing.T, customID string, response []byte, status int) {
		line := AppendLine(nil, &store.Job{ID: "abc", CustomID: customID, RequestID: "r", Status: store.JobCompleted, ResponseStatus: status, Response: response})
		require.True(t, json.Valid(line), "%s", line)
		require.Equal(t, len(line)-1, bytes.IndexByte(line, '\n'), "it is one line")
	})
}
