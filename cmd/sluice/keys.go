package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sluice/internal/adminapi"
	"sluice/store"
)

// group is a command that has only others below it.
func group(use, short, long, example string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(below...)
	return cmd
}

// administered is what the long help of the commands that administer says of their way.
const administered = `These commands ask a running ingress if the configuration has admin.address, with
admin.token, and otherwise work on the configured database themselves. Either way the
audit tells of each change.`

func keysCommand(s *settings) *cobra.Command {
	return group("keys", "Create, list, update, rotate and revoke API keys",
		"API keys let clients in.\n\n"+administered,
		`  sluice keys create ci --tenant research --models 'gpt-4o*' --expires 720h
  sluice keys update ci --requests-per-minute 60 --budget-month 100
  sluice keys rotate ci --overlap 24h
  sluice keys list
  sluice keys revoke ci`,
		keysCreate(s), keysList(s), keysShow(s), keysUpdate(s), keysRotate(s), keysRevoke(s))
}

// keyPath is where a key is asked about.
func keyPath(idOrName string) string { return adminapi.KeysPath + "/" + url.PathEscape(idOrName) }

// noKey says what to do about a key that is not there.
func noKey(err error, idOrName string) error {
	if isStatus(err, http.StatusNotFound) {
		return fmt.Errorf("there is no key with the name or id %q; 'sluice keys list' shows them", idOrName)
	}
	return err
}

func keysCreate(s *settings) *cobra.Command {
	var req adminapi.CreateKey
	var expires time.Duration
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make an API key and print it, this once",
		Long: `Make an API key and print it on standard output, this once: only its hash is
stored. Everything else goes to standard error, so that the key can be piped.`,
		Example: `  sluice keys create ci --tenant research --models 'gpt-4o*,sim' --expires 720h
  sluice keys create web --requests-per-minute 600 --tokens-per-minute 200000 --budget-month 250`,
		Args: oneName,
	}
	bounds := addLimitFlags(cmd, false)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("expires") && expires <= 0 {
			return usageError{errors.New("--expires must be positive")}
		}
		req.Name = args[0]
		if expires > 0 {
			req.ExpiresIn = expires.String()
		}
		if err := (store.Key{ID: "new", Name: req.Name, Tenant: req.Tenant, Models: req.Models}).Validate(); err != nil {
			return usageError{err}
		}
		own, err := bounds.apply(nil)
		if err != nil {
			return err
		}
		if own != nil {
			req.Limits = adminapi.Given(own)
		}
		return s.administer(cmd, func(ask operator) error {
			var made adminapi.Key
			if err := ask(http.MethodPost, adminapi.KeysPath, req, &made); err != nil {
				return fmt.Errorf("create key %s: %w", req.Name, err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "Key %s (%s) of tenant %s, shown this once:\n", made.Name, made.ID, made.Tenant)
			_, err := fmt.Fprintln(cmd.OutOrStdout(), made.Secret)
			return err
		})
	}
	cmd.Flags().StringVar(&req.Tenant, "tenant", "default", "tenant that the key's usage counts for")
	cmd.Flags().StringSliceVar(&req.Models, "models", nil, "models that the key may use, as names or globs; all if not given")
	cmd.Flags().DurationVar(&expires, "expires", 0, "time until the key expires, such as 720h; never if not given")
	return cmd
}

// pageSize is how much of a list is asked for at once.
const pageSize = 50

// eachPage asks for page after page of a list, until it ends or most entries were shown;
// zero is all of them. show returns how many entries a page had, and the page.
func eachPage(path string, query url.Values, most int, show func(path string) (int, adminapi.Page, error)) error {
	for shown := 0; ; {
		size := pageSize
		if most > 0 {
			size = min(size, most-shown)
		}
		query.Set("limit", strconv.Itoa(size))
		n, page, err := show(path + "?" + query.Encode())
		if err != nil {
			return err
		}
		if shown += n; !page.HasMore || most > 0 && shown >= most {
			return nil
		}
		query.Set("after", page.Next)
	}
}

// setText adds what is not empty to a query.
func setText(query url.Values, name, value string) {
	if value != "" {
		query.Set(name, value)
	}
}

func keysList(s *settings) *cobra.Command {
	var tenant, state string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List API keys, without their secrets",
		Example: `  sluice keys list --config ingress.yaml
  sluice keys list --tenant research --state active --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.administer(cmd, func(ask operator) error {
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
				if !asJSON {
					fmt.Fprintln(t, "ID\tNAME\tTENANT\tKEY\tMODELS\tSTATE\tCREATED")
				}
				query := url.Values{}
				setText(query, "tenant", tenant)
				setText(query, "state", state)
				err := eachPage(adminapi.KeysPath, query, 0, func(path string) (int, adminapi.Page, error) {
					var list adminapi.KeyList
					if err := ask(http.MethodGet, path, nil, &list); err != nil {
						return 0, list.Page, err
					}
					for _, k := range list.Keys {
						if asJSON {
							if err := printLine(cmd.OutOrStdout(), k); err != nil {
								return 0, list.Page, err
							}
							continue
						}
						fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, k.Name, k.Tenant, k.Display, modelList(k.Models), keyState(storedKey(k), time.Now()), stamp(k.CreatedAt))
					}
					return len(list.Keys), list.Page, nil
				})
				return errors.Join(err, t.Flush())
			})
		},
	}
	cmd.Flags().StringVar(&tenant, "tenant", "", "tenant whose keys are listed; all if not given")
	cmd.Flags().StringVar(&state, "state", "", "state of the keys listed: active, expired or revoked; all if not given")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print each key as a line of JSON, with its limits")
	return cmd
}

// storedKey is the key as far as its state goes.
func storedKey(k adminapi.Key) (stored store.Key) {
	if k.ExpiresAt != nil {
		stored.ExpiresAt = *k.ExpiresAt
	}
	if k.RevokedAt != nil {
		stored.RevokedAt = *k.RevokedAt
	}
	return stored
}

// printLine prints a value as one line of JSON.
func printLine(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }

// printJSON prints a value for a person.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false) // a person reads it
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func keysShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME|ID",
		Short:   "Show an API key with its limits, without its secret",
		Example: `  sluice keys show ci`,
		Args:    oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.administer(cmd, func(ask operator) error {
				var key adminapi.Key
				if err := ask(http.MethodGet, keyPath(args[0]), nil, &key); err != nil {
					return noKey(err, args[0])
				}
				return printJSON(cmd.OutOrStdout(), key)
			})
		},
	}
}

func keysRevoke(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "revoke NAME|ID",
		Short:   "Revoke an API key; every ingress refuses it within seconds",
		Example: `  sluice keys revoke ci`,
		Args:    oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.administer(cmd, func(ask operator) error {
				var k adminapi.Key
				if err := ask(http.MethodDelete, keyPath(args[0]), nil, &k); err != nil {
					return noKey(err, args[0])
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "Key %s (%s) is revoked.\n", k.Name, k.ID)
				return err
			})
		},
	}
}
