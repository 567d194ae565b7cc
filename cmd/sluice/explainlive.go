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
	askTimeout     = 10 * time.Second
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
	var body io.Reader = http.NoBody
	if request != nil {
		text, err := json.Marshal(request)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, baseURL(admin.Address)+path, body)
	if err != nil {
		return fmt.Errorf("ask the ingress at admin.address %s: %w", admin.Address, err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+admin.Token.Reveal())
	// The token goes to the configured address alone: not through a proxy of the
	// environment, and not to wherever an answer points.
	client := &http.Client{
		Timeout: askTimeout, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the ingress at admin.address %s: %w", admin.Address, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		return fmt.Errorf("read the answer of the ingress at admin.address %s: %w", admin.Address, err)
	case len(text) > maxAnswerBytes:
		return fmt.Errorf("the answer of the ingress at admin.address %s is longer than %d bytes", admin.Address, maxAnswerBytes)
	case resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent:
		return refusedBy(admin.Address, resp.StatusCode, text)
	case answer == nil:
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("read the answer of the ingress at admin.address %s: %w", admin.Address, err)
	}
	return nil
}

// refusedBy says what an ingress has against the question.
func refusedBy(address string, status int, text []byte) error {
	if status == http.StatusUnauthorized || status == http.StatusForbidden {
		return fmt.Errorf("the ingress at admin.address %s does not accept admin.token", address)
	}
	var body struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal(text, &body); err != nil || body.Error.Message == "" {
		return fmt.Errorf("the ingress at admin.address %s answered %d", address, status)
	}
	const most = 500
	message := body.Error.Message[:min(len(body.Error.Message), most)]
	return fmt.Errorf("the ingress at admin.address %s answered %d: %q", address, status, message)
}
