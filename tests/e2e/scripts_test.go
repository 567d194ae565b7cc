package e2e_test

import (
	"bufio"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/openai/openai-go/v3/option"

	"sluice/internal/testkit"
)

// prompt returns the text of the last message that reached the upstream.
func prompt(call *testkit.Call) string {
	var body struct {
		Messages []struct {
			Content string `json:"content"`
		} `json:"messages"`
	}
	if json.Unmarshal(call.Body, &body) != nil || len(body.Messages) == 0 {
		return ""
	}
	return body.Messages[len(body.Messages)-1].Content
}

// headerOptions sends the request's id and further headers, given as name and value.
func headerOptions(id string, header []string) []option.RequestOption {
	opts := []option.RequestOption{requestID(id)}
	for i := 0; i+1 < len(header); i += 2 {
		opts = append(opts, option.WithHeader(header[i], header[i+1]))
	}
	return opts
}

// waiting and running return how many jobs stand in the provider's queue and in
// workers' hands, as the ingress's metrics tell it.
func waiting(in *ingress) int { return depth(in, "waiting") }
func running(in *ingress) int { return depth(in, "running") }

func depth(in *ingress, state string) int {
	resp, err := in.http.Get(in.base + "/metrics")
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	prefix := `sluice_queue_depth{provider="` + provider + `",state="` + state + `"} `
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), prefix); ok {
			n, err := strconv.Atoi(value)
			if err != nil {
				return -1
			}
			return n
		}
	}
	return -1
}
