package openaiapi

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func TestParseCreateBatch(t *testing.T) {
	t.Parallel()
	got, err := ParseCreateBatch([]byte(`{"input_file_id":"file-1","endpoint":"/v1/chat/completions","completion_window":"24h","more":1}`))
	require.NoError(t, err)
	require.Equal(t, CreateBatch{InputFile: "file-1", Endpoint: EndpointChat, Window: 24 * time.Hour}, got)
	got, err = ParseCreateBatch([]byte(`{"input_file_id":"file-1","endpoint":"/v1/embeddings","completion_window":"7d","metadata":{"a":"b","ü":""},"output_expires_after":{"anchor":"created_at","seconds":3600}}`))
	require.NoError(t, err)
	require.Equal(t, CreateBatch{
		InputFile: "file-1", Endpoint: EndpointEmbeddings, Window: 7 * 24 * time.Hour,
		Metadata: map[string]string{"a": "b", "ü": ""}, OutputExpires: time.Hour,
	}, got)
}

func TestWindowsOfABatch(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"24h": "24h", "10m": "10m", "36h": "36h", "7d": "168h", "1d": "24h", "1h30m": "90m", "600.5s": "10m", "601s": "601s", "168h": "168h"} {
		d, err := parseWindow(text)
		require.NoError(t, err, text)
		require.Equal(t, want, WindowText(d), text)
	}
	for _, text := range []string{"9m", "8d", "168h1s", "-1h", "24", "d", "-1d", "1.5d", "300d", "24 h", "1d2h", "NaNh", "99999999999999999999d"} {
		_, err := parseWindow(text)
		require.Equal(t, "completion_window", inference.AsError(err).Param, text)
	}
}

func TestFaultsOfARequestForABatch(t *testing.T) {
	t.Parallel()
	base := map[string]string{"input_file_id": `"file-1"`, "endpoint": `"/v1/embeddings"`, "completion_window": `"24h"`}
	var pairs []string
	for i := range 17 {
		pairs = append(pairs, fmt.Sprintf(`"k%d":"v"`, i))
	}
	for name, c := range map[string]struct{ field, value, param string }{
		"no file":             {"input_file_id", "", "input_file_id"},
		"no name of one":      {"input_file_id", "{}", "input_file_id"},
		"an empty one":        {"input_file_id", `""`, "input_file_id"},
		"no endpoint":         {"endpoint", "null", "endpoint"},
		"another endpoint":    {"endpoint", `"/v1/responses"`, "endpoint"},
		"no window":           {"completion_window", "", "completion_window"},
		"a window of seconds": {"completion_window", "86400", "completion_window"},
		"metadata of numbers": {"metadata", `{"a":1}`, "metadata"},
		"a list of metadata":  {"metadata", `["a"]`, "metadata"},
		"much metadata":       {"metadata", "{" + strings.Join(pairs, ",") + "}", "metadata"},
		"a long key":          {"metadata", `{"` + strings.Repeat("ü", 65) + `":"v"}`, "metadata"},
		"a long value":        {"metadata", `{"k":"` + strings.Repeat("ü", 513) + `"}`, "metadata"},
		"a key twice":         {"metadata", `{"k":"v","\u006b":"w"}`, "metadata"},
		"no expiry":           {"output_expires_after", `3600`, "output_expires_after"},
		"another anchor":      {"output_expires_after", `{"anchor":"now","seconds":3600}`, "output_expires_after.anchor"},
		"a short expiry":      {"output_expires_after", `{"anchor":"created_at","seconds":3599}`, "output_expires_after.seconds"},
		"a long expiry":       {"output_expires_after", `{"anchor":"created_at","seconds":2592001}`, "output_expires_after.seconds"},
		"half a second":       {"output_expires_after", `{"anchor":"created_at","seconds":3600.5}`, "output_expires_after.seconds"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var fields []string
			for k, v := range base {
				if k != c.field {
					fields = append(fields, fmt.Sprintf("%q:%s", k, v))
				}
			}
			if c.value != "" {
				fields = append(fields, fmt.Sprintf("%q:%s", c.field, c.value))
			}
			_, err := ParseCreateBatch([]byte("{" + strings.Join(fields, ",") + "}"))
			e := inference.AsError(err)
			require.Equal(t, inference.CodeInvalidRequest, e.Code)
			require.Equal(t, c.param, e.Param)
		})
	}
	for _, body := range []string{"", "{", "[]", "\xff"} {
		_, err := ParseCreateBatch([]byte(body))
		require.Error(t, err)
	}
	long := `{"a":"` + strings.Repeat("ü", 512) + `"}`
	got, err := strictMetadata(value(long))
	require.NoError(t, err, "the bounds are characters, not bytes")
	require.Len(t, got["a"], 1024)
}

func TestABatchAsJSON(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(Batch{ID: "batch_1", Endpoint: EndpointChat, InputFile: "file-1", Status: "validating", Window: 24 * time.Hour, CreatedAt: 7, ExpiresAt: 86407})
	require.NoError(t, err)
	require.JSONEq(t, `{"id":"batch_1","object":"batch","endpoint":"/v1/chat/completions","errors":null,"input_file_id":"file-1","completion_window":"24h",
		"status":"validating","output_file_id":null,"error_file_id":null,"created_at":7,"in_progress_at":null,"expires_at":86407,"finalizing_at":null,
		"completed_at":null,"failed_at":null,"expired_at":null,"cancelling_at":null,"cancelled_at":null,"request_counts":{"total":0,"completed":0,"failed":0},
		"usage":{"input_tokens":0,"input_tokens_details":{"cached_tokens":0},"output_tokens":0,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":0},
		"metadata":null}`, string(data))
	data, err = json.Marshal(Batch{
		ID: "batch_1", Endpoint: EndpointChat, Model: "m", InputFile: "file-1", Status: "failed", Window: time.Hour, OutputFile: "file-2", ErrorFile: "file-3",
		CreatedAt: 1, InProgressAt: 2, ExpiresAt: 3, FinalizingAt: 4, CompletedAt: 5, FailedAt: 6, ExpiredAt: 7, CancellingAt: 8, CancelledAt: 9,
		Total: 10, Completed: 11, Failed: 12, Metadata: map[string]string{"a": "b"},
		Usage:  inference.Usage{PromptTokens: 13, CachedTokens: 14, CompletionTokens: 15, ReasoningTokens: 16},
		Faults: []BatchFault{{Code: "empty_file", Message: "x"}, {"c", "y", "body.model", 17}},
	})
	require.NoError(t, err)
	require.JSONEq(t, `{"id":"batch_1","object":"batch","endpoint":"/v1/chat/completions","model":"m","input_file_id":"file-1","completion_window":"1h",
		"errors":{"object":"list","data":[{"code":"empty_file","message":"x","param":null,"line":null},{"code":"c","message":"y","param":"body.model","line":17}]},
		"status":"failed","output_file_id":"file-2","error_file_id":"file-3","created_at":1,"in_progress_at":2,"expires_at":3,"finalizing_at":4,
		"completed_at":5,"failed_at":6,"expired_at":7,"cancelling_at":8,"cancelled_at":9,"request_counts":{"total":10,"completed":11,"failed":12},
		"usage":{"input_tokens":13,"input_tokens_details":{"cached_tokens":14},"output_tokens":15,"output_tokens_details":{"reasoning_tokens":16},"total_tokens":28},
		"metadata":{"a":"b"}}`, string(data))
	data, err = json.Marshal(BatchList{})
	require.NoError(t, err)
	require.JSONEq(t, `{"object":"list","data":[],"first_id":null,"last_id":null,"has_more":false}`, string(data))
}

func FuzzParseCreateBatch(f *testing.F) {
	f.Add([]byte(`{"input_file_id":"file-1","endpoint":"/v1/embeddings","completion_window":"7d","metadata":{"a":"b"},"output_expires_after":{"anchor":"created_at","seconds":3600}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := ParseCreateBatch(body)
		if err != nil {
			require.NotEmpty(t, inference.AsError(err).Message)
			require.NotEqual(t, inference.CodeInternal, inference.AsError(err).Code)
			return
		}
		require.True(t, json.Valid(body))
		require.NotEmpty(t, got.InputFile)
		require.True(t, got.Window >= MinWindow && got.Window <= MaxWindow)
		require.LessOrEqual(t, len(got.Metadata), MaxMetadata)
		again, err := parseWindow(WindowText(got.Window))
		require.NoError(t, err)
		require.Equal(t, got.Window, again)
	})
}

func FuzzParseBatchLine(f *testing.F) {
	f.Add([]byte(`{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"a":1}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		got, err := ParseBatchLine(line)
		if err != nil {
			return
		}
		var want struct {
			CustomID string `json:"custom_id"`
			Method   string
			URL      string
			Body     json.RawMessage
		}
		require.NoError(t, json.Unmarshal(line, &want))
		require.Equal(t, want.CustomID, got.CustomID)
		require.Equal(t, want.Method, got.Method)
		require.Equal(t, want.URL, got.URL)
		require.JSONEq(t, string(want.Body), string(got.Body))
	})
}
