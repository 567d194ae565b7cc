package conformance_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/tests/integration/conformance"
)

const (
	aFile  = `{"id":"file-1","object":"file","bytes":3,"created_at":1700000000,"filename":"f","purpose":"batch","status":"processed"}`
	aBatch = `{"id":"batch_1","object":"batch","endpoint":"/v1/embeddings","errors":null,"input_file_id":"file-1","completion_window":"24h",` +
		`"status":"in_progress","output_file_id":null,"error_file_id":null,"created_at":1700000000,"in_progress_at":1700000001,` +
		`"expires_at":1700086400,"request_counts":{"total":2,"completed":1,"failed":0},"metadata":{"a":"b"}}`
	aLine  = `{"id":"batch_req_1","custom_id":"a","response":{"status_code":200,"request_id":"r","body":{}},"error":null}`
	aFault = `{"error":{"type":"t","message":"m","param":null,"code":null,"details":{}}}`
	event  = `{"id":"evt_1","object":"event","created_at":1700000000,"type":"batch.failed","data":{"id":"batch_1"}}`
)

// TestSchemasTellRightFromWrong changes each object in one place.
func TestSchemasTellRightFromWrong(t *testing.T) {
	t.Parallel()
	schemas, err := conformance.Load()
	require.NoError(t, err)
	for _, c := range []struct{ object, body, old, wrong string }{
		{conformance.File, aFile, `"bytes":3`, `"bytes":-3`},
		{conformance.File, aFile, `"status":"processed"`, `"status":"processed","stray":1`},
		{conformance.File, aFile, `1700000000`, `1700000000000`},
		{conformance.File, aFile, `,"status":"processed"`, ``},
		{conformance.FileList, `{"object":"list","data":[` + aFile + `],"first_id":"a","last_id":"a","has_more":false}`, `"purpose":"batch"`, `"purpose":"lunch"`},
		{conformance.FileDeleted, `{"id":"file-1","object":"file","deleted":true}`, `"object":"file"`, `"object":"file.deleted"`},
		{conformance.Batch, aBatch, `"output_file_id":null`, `"output_file_id":""`},
		{conformance.Batch, aBatch, `"failed":0`, `"failed":0,"stray":0`},
		{conformance.Batch, aBatch, `"metadata"`, `"eta"`},
		{conformance.Batch, aBatch, `"errors":null`, `"errors":{"object":"list","data":[{"code":"c","message":"m","param":null,"line":0}]}`},
		{conformance.Batch, aBatch, `"in_progress_at":1700000001`, `"in_progress_at":0`},
		{conformance.BatchList, `{"object":"list","data":[` + aBatch + `],"first_id":"a","last_id":"a","has_more":true}`, `"status":"in_progress"`, `"status":"running"`},
		{conformance.BatchLine, aLine, `"error":null`, `"error":{"code":"c","message":"m","line":1}`},
		{conformance.BatchLine, aLine, `{"status_code":200,"request_id":"r","body":{}}`, `null`},
		{conformance.BatchLine, aLine, `"status_code":200`, `"status":200`},
		{conformance.Error, aFault, `"param":null,`, ``},
		{conformance.Error, aFault, `{}}`, `{}},"id":1`},
		{conformance.BatchFailed, event, `failed`, `expired`},
		{conformance.BatchFailed, event, `"id":"batch_1"`, `"id":"batch_1","status":"failed"`},
		{conformance.BatchFailed, event, `"object":"event",`, `"object":"event","stray":1,`},
	} {
		require.NoError(t, schemas.Check(c.object, []byte(c.body)))
		wrong := strings.Replace(c.body, c.old, c.wrong, 1)
		require.NotEqual(t, c.body, wrong)
		require.Error(t, schemas.Check(c.object, []byte(wrong)), "%s: %s for %s", c.object, c.wrong, c.old)
	}
	require.Error(t, schemas.Check("Nothing", []byte(aFile)))
	require.Error(t, schemas.Check(conformance.File, []byte(`{"id":`)))
}
