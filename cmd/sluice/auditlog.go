package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"sluice/internal/adminapi"
)

func auditCommand(s *settings) *cobra.Command {
	return group("audit", "See who changed what",
		"Each administrative change is remembered: who made it, what it was, before and after.\n\n"+administered,
		`  sluice audit list
  sluice audit list --target key:key_… --json`,
		auditList(s))
}

func auditList(s *settings) *cobra.Command {
	var actor, action, target, from, to string
	var most int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List administrative changes, newest first",
		Example: `  sluice audit list --limit 20
  sluice audit list --actor on-call --from 2026-01-01
  sluice audit list --target tenant:research --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if most < 1 {
				return usageError{errors.New("--limit must be positive")}
			}
			query := url.Values{}
			for name, value := range map[string]string{"actor": actor, "action": action, "target": target, "from": from, "to": to} {
				setText(query, name, value)
			}
			return s.administer(cmd, func(ask operator) error {
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
				if !asJSON {
					fmt.Fprintln(t, "AT\tACTOR\tACTION\tTARGET\tCHANGE")
				}
				err := eachPage(adminapi.AuditPath, query, most, func(path string) (int, adminapi.Page, error) {
					var list adminapi.AuditList
					if err := ask(http.MethodGet, path, nil, &list); err != nil {
						return 0, list.Page, err
					}
					for _, e := range list.Entries {
						if asJSON {
							if err := printLine(cmd.OutOrStdout(), e); err != nil {
								return 0, list.Page, err
							}
							continue
						}
						fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", stamp(e.At), e.Actor, e.Action, e.Target, changeOf(e))
					}
					return len(list.Entries), list.Page, nil
				})
				return errors.Join(err, t.Flush())
			})
		},
	}
	cmd.Flags().StringVar(&actor, "actor", "", "who made the changes, such as admin, an operator's name or cli:USER")
	cmd.Flags().StringVar(&action, "action", "", "what was done, such as key.create")
	cmd.Flags().StringVar(&target, "target", "", "what was changed, such as key:ID or tenant:NAME")
	cmd.Flags().StringVar(&from, "from", "", "day or RFC 3339 time from which on, such as 2026-01-31")
	cmd.Flags().StringVar(&to, "to", "", "last day, or time before which")
	cmd.Flags().IntVar(&most, "limit", 100, "most changes to list")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print each change as a line of JSON")
	return cmd
}

// changeOf shows an entry in one line. Where nothing is said of after, what it was before is
// gone only if that is what was done.
func changeOf(e adminapi.AuditEntry) string {
	gone := strings.HasSuffix(e.Action, ".delete") || strings.HasSuffix(e.Action, ".drop")
	if membersOf(e.After) == nil && !gone {
		return changeText(nil, e.Before)
	}
	return changeText(e.Before, e.After)
}

// changeText shows in one line what is different: each member with its value before and
// after.
func changeText(before, after json.RawMessage) string {
	was, is := membersOf(before), membersOf(after)
	names := slices.Collect(maps.Keys(is))
	for name := range was {
		if _, both := is[name]; !both {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var parts []string
	for _, name := range names {
		switch old, now := string(was[name]), string(is[name]); {
		case old == now:
		case was == nil:
			parts = append(parts, name+": "+now)
		default:
			parts = append(parts, name+": "+orNothing(old)+" → "+orNothing(now))
		}
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, ", ")
}

func membersOf(text json.RawMessage) map[string]json.RawMessage {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return nil // what is no object has no members
	}
	return members
}

func orNothing(text string) string {
	if text == "" {
		return "nothing"
	}
	return text
}
