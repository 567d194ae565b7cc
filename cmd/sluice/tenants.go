package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"sluice/internal/adminapi"
	"sluice/internal/limits"
)

func tenantsCommand(s *settings) *cobra.Command {
	return group("tenants", "See to what all keys of a tenant together may do",
		"A tenant has limits that all its keys share, and can be disabled.\n\n"+administered,
		`  sluice tenants set research --budget-month 2000 --concurrent 50
  sluice tenants set research --disable
  sluice tenants list`,
		tenantsList(s), tenantsShow(s), tenantsSet(s), tenantsDelete(s))
}

func tenantPath(name string) string { return adminapi.TenantsPath + "/" + url.PathEscape(name) }

// noTenant says what to do about a tenant of which nothing is remembered.
func noTenant(err error, name string) error {
	if isStatus(err, http.StatusNotFound) {
		return fmt.Errorf("nothing is remembered of a tenant %q; 'sluice tenants list' shows of which something is", name)
	}
	return err
}

func tenantsList(s *settings) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List tenants that have limits or are disabled",
		Example: `  sluice tenants list`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.administer(cmd, func(ask operator) error {
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
				if !asJSON {
					fmt.Fprintln(t, "NAME\tSTATE\tLIMITS\tUPDATED")
				}
				err := eachPage(adminapi.TenantsPath, url.Values{}, 0, func(path string) (int, adminapi.Page, error) {
					var list adminapi.TenantList
					if err := ask(http.MethodGet, path, nil, &list); err != nil {
						return 0, list.Page, err
					}
					for _, tenant := range list.Tenants {
						if asJSON {
							if err := printLine(cmd.OutOrStdout(), tenant); err != nil {
								return 0, list.Page, err
							}
							continue
						}
						fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", tenant.Name, tenantState(tenant), limitText(tenant.Limits), stamp(tenant.UpdatedAt))
					}
					return len(list.Tenants), list.Page, nil
				})
				return errors.Join(err, t.Flush())
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print each tenant as a line of JSON")
	return cmd
}

func tenantState(t adminapi.Tenant) string {
	if t.Disabled {
		return "disabled"
	}
	return "enabled"
}

// limitText shows limits in one line.
func limitText(l *limits.Limits) string {
	if l == nil {
		return "-"
	}
	text, err := json.Marshal(l)
	if err != nil {
		return "?" // numbers and texts can always be written
	}
	return string(text)
}

func tenantsShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Short:   "Show a tenant with its limits",
		Example: `  sluice tenants show research`,
		Args:    oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.administer(cmd, func(ask operator) error {
				var tenant adminapi.Tenant
				if err := ask(http.MethodGet, tenantPath(args[0]), nil, &tenant); err != nil {
					return noTenant(err, args[0])
				}
				return printJSON(cmd.OutOrStdout(), tenant)
			})
		},
	}
}

func tenantsSet(s *settings) *cobra.Command {
	var disable, enable bool
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Set a tenant's limits, disable or enable it",
		Long: `Set a tenant's limits, which all its keys share, or disable it: then all its keys are
refused, within seconds and at every ingress. What is not named stays.`,
		Example: `  sluice tenants set research --requests-per-minute 6000 --budget-month 2000
  sluice tenants set research --disable
  sluice tenants set research --no-limits --enable`,
		Args: oneName,
	}
	bounds := addLimitFlags(cmd, true)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case disable && enable:
			return usageError{errors.New("--disable and --enable exclude each other")}
		case !disable && !enable && !bounds.given():
			return usageError{fmt.Errorf("%s has nothing to set: name limits, --disable or --enable", cmd.CommandPath())}
		}
		return s.administer(cmd, func(ask operator) error {
			var tenant adminapi.Tenant
			var req adminapi.PutTenant
			switch err := ask(http.MethodGet, tenantPath(args[0]), nil, &tenant); {
			case err == nil:
				req = adminapi.PutTenant{Disabled: tenant.Disabled, UpdatedAt: &tenant.UpdatedAt}
			case !isStatus(err, http.StatusNotFound):
				return err
			}
			own, err := bounds.apply(tenant.Limits)
			if err != nil {
				return err
			}
			req.Limits = adminapi.Given(own)
			req.Disabled = (req.Disabled || disable) && !enable
			if err := ask(http.MethodPut, tenantPath(args[0]), req, &tenant); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Tenant %s is %s, its limits: %s\n", tenant.Name, tenantState(tenant), limitText(tenant.Limits))
			return err
		})
	}
	cmd.Flags().BoolVar(&disable, "disable", false, "refuse all keys of the tenant")
	cmd.Flags().BoolVar(&enable, "enable", false, "let the keys of the tenant in again")
	return cmd
}

func tenantsDelete(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME",
		Short: "Forget a tenant's limits; its keys stay",
		Long: `Forget a tenant's limits; its keys stay, with the limits that the ingress has for tenants
without. A disabled tenant is not forgotten, because its callers would be let in again,
those with keys of the configuration file and with tokens, too: enable it first.`,
		Example: `  sluice tenants delete research`,
		Args:    oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.administer(cmd, func(ask operator) error {
				err := ask(http.MethodDelete, tenantPath(args[0]), nil, nil)
				if isStatus(err, http.StatusConflict) {
					return fmt.Errorf("%w With 'sluice tenants set %s --enable' it is let in again", err, args[0])
				}
				if err != nil {
					return noTenant(err, args[0])
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "Nothing is remembered of tenant %s any more.\n", args[0])
				return err
			})
		},
	}
}
