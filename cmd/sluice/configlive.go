package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"sluice/internal/adminapi"
	"sluice/internal/config"
)

// operator returns where the running ingress is to be asked.
func (s *settings) operator(cmd *cobra.Command) (config.Admin, error) {
	loaded, err := s.loadAndWarn(cmd.ErrOrStderr(), config.RoleOperator)
	if err != nil {
		return config.Admin{}, err
	}
	if loaded.Config.Admin.Address == "" {
		return config.Admin{}, errors.New("this needs admin.address and admin.token in the configuration, as the running ingress has them")
	}
	return loaded.Config.Admin, nil
}

// showLive prints what the running ingress says of its configuration.
func showLive(cmd *cobra.Command, s *settings) error {
	admin, err := s.operator(cmd)
	if err != nil {
		return err
	}
	asked := ingressAt(admin)
	status, text, err := asked.exchange(cmd.Context(), http.MethodGet, adminapi.ConfigPath, "application/yaml", nil)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return asked.refusedBy(status, text)
	}
	_, err = cmd.OutOrStdout().Write(text)
	return err
}

func configReload(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "Have the running ingress read its configuration again", Args: noArgs,
		Long: `Have the ingress that runs at admin.address read its configuration file again, and
say how that went. It does so by itself when the file changes; a process without an
admin listener does it on SIGHUP, too.`,
		Example: `  sluice config reload --config sluice.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			admin, err := s.operator(cmd)
			if err != nil {
				return err
			}
			asked := ingressAt(admin)
			status, text, err := asked.exchange(cmd.Context(), http.MethodPost, adminapi.ConfigReloadPath, "application/json", nil)
			switch {
			case err != nil:
				return err
			case status == http.StatusUnprocessableEntity:
				return asked.faultyConfig(text)
			case status != http.StatusOK:
				return asked.refusedBy(status, text)
			}
			var state adminapi.ConfigState
			if err := json.Unmarshal(text, &state); err != nil {
				return fmt.Errorf("read the answer of %s: %w", asked.who, err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "The configuration is reloaded (%s).\n", state.Hash)
			for _, setting := range state.NeedsRestart {
				fmt.Fprintf(cmd.OutOrStdout(), "%s has changed and needs a restart.\n", setting)
			}
			return nil
		},
	}
}

// faultyConfig says what an ingress has against its file, as a start would.
func (a asking) faultyConfig(text []byte) error {
	var body struct {
		Error struct {
			Details struct {
				Faults []adminapi.ConfigFault `json:"faults"`
			} `json:"details"`
		} `json:"error"`
	}
	if err := json.Unmarshal(text, &body); err != nil || len(body.Error.Details.Faults) == 0 {
		return a.refusedBy(http.StatusUnprocessableEntity, text)
	}
	invalid := new(config.InvalidError)
	for _, f := range body.Error.Details.Faults {
		invalid.Faults = append(invalid.Faults, config.Fault{At: f.At, Path: f.Setting, Problem: f.Problem})
	}
	return fmt.Errorf("nothing is reloaded:\n%w", invalid)
}
