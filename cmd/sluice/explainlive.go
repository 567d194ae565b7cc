package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"sluice/internal/adminapi"
	"sluice/internal/config"
)

// Bounds on asking a running ingress, which looks into its own memory or its database.
const (
	askTimeout     = 30 * time.Second // longer than a report may take
	maxAnswerBytes = 4 << 20
)

// askIngress has the running ingress explain what it would do.
func (e *explainer) askIngress(cmd *cobra.Command, s *settings) (adminapi.ExplainResponse, error) {
	var answer adminapi.ExplainResponse
	loaded, err := s.loadAndWarn(cmd.ErrOrStderr(), config.RoleOperator)
	if err != nil {
		return answer, err
	}
	if loaded.Config.Admin.Address == "" {
		return answer, errors.New("--live needs admin.address and admin.token in the configuration, as the running ingress has them")
	}
	err = callIngress(cmd.Context(), loaded.Config.Admin, http.MethodPost, adminapi.ExplainPath, e.request, &answer)
	return answer, err
}

// callIngress asks a running ingress on its admin listener. What is nil is not sent, and
// not read.
func callIngress(ctx context.Context, admin config.Admin, method, path string, request, answer any) error {
	return ingressAt(admin).call(ctx, method, path, request, answer)
}

// ingressAt is the way to a running ingress. The token goes to the configured address
// alone: not through a proxy of the environment, and not to wherever an answer points.
func ingressAt(admin config.Admin) asking {
	return asking{
		who: "the ingress at admin.address " + admin.Address, base: baseURL(admin.Address), token: admin.Token.Reveal(),
		via: &http.Transport{DisableKeepAlives: true},
	}
}

// asking is a way to who serves the admin API.
type asking struct {
	who   string // as errors name it
	base  string
	token string
	via   http.RoundTripper
}

// call asks, and reads what is answered. What is nil is not sent, and not read.
func (a asking) call(ctx context.Context, method, path string, request, answer any) error {
	status, text, err := a.exchange(ctx, method, path, "application/json", request)
	switch {
	case err != nil:
		return err
	case status < 200 || status > 299:
		return a.refusedBy(status, text)
	case answer == nil:
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("read the answer of %s: %w", a.who, err)
	}
	return nil
}

// exchange asks, and returns what is answered, and with which status, in the form that is
// wanted.
func (a asking) exchange(ctx context.Context, method, path, accept string, request any) (status int, text []byte, err error) {
	var body io.Reader = http.NoBody
	if request != nil {
		text, err := json.Marshal(request)
		if err != nil {
			return 0, nil, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, body)
	if err != nil {
		return 0, nil, fmt.Errorf("ask %s: %w", a.who, err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", accept)
	req.Header.Set("Authorization", "Bearer "+a.token)
	client := &http.Client{
		Timeout: askTimeout, Transport: a.via,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("ask %s: %w", a.who, err)
	}
	defer resp.Body.Close()
	text, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	if err != nil {
		return 0, nil, fmt.Errorf("read the answer of %s: %w", a.who, err)
	}
	if len(text) > maxAnswerBytes {
		return 0, nil, fmt.Errorf("the answer of %s is longer than %d bytes", a.who, maxAnswerBytes)
	}
	return resp.StatusCode, text, nil
}

// refusal is what was answered in place of what was asked for.
type refusal struct {
	status  int
	message string // as it was answered; empty: there was none
	text    string
}

func (r *refusal) Error() string { return r.text }

// refusedBy says what who was asked has against the question.
func (a asking) refusedBy(status int, text []byte) error {
	r := &refusal{status: status, text: fmt.Sprintf("%s answered %d", a.who, status)}
	if status == http.StatusUnauthorized {
		r.text = a.who + " does not accept admin.token"
		return r
	}
	var body struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal(text, &body); err == nil && body.Error.Message != "" {
		const most = 500
		r.message = body.Error.Message[:min(len(body.Error.Message), most)]
		r.text += fmt.Sprintf(": %q", r.message)
	}
	return r
}
