package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"sluice/internal/adminapi"
)

func deadLettersCommand(s *settings) *cobra.Command {
	return groupCommand("dead-letters", "Look at what could not be done, and send it again or drop it",
		`Look at what could not be done, and send it again or drop it. Dead letters are messages
that nobody could read, with the reason; they are kept for a week. These commands ask a
running ingress, at admin.address with admin.token.`,
		`  sluice dead-letters list --provider openai
  sluice dead-letters requeue dead_17
  sluice dead-letters drop --all --provider openai --yes`,
		lettersList(s), lettersShow(s),
		lettersMany(s, "requeue", "Send dead letters on their way again", adminapi.RequeuePath),
		lettersMany(s, "drop", "Remove dead letters", adminapi.DropPath))
}

func letterPath(id string) string { return adminapi.DeadLettersPath + "/" + url.PathEscape(id) }

// letterFlags adds the flags that select dead letters.
func letterFlags(cmd *cobra.Command, f *adminapi.ManyLetters, limit int) {
	cmd.Flags().StringVar(&f.Provider, "provider", "", "provider whose dead letters are meant; all if not given")
	cmd.Flags().StringVar(&f.Reason, "reason", "", "part of the reason")
	cmd.Flags().StringVar(&f.From, "from", "", "day or RFC 3339 time from which on, such as 2026-01-31")
	cmd.Flags().StringVar(&f.To, "to", "", "last day, or time before which")
	cmd.Flags().IntVar(&f.Limit, "limit", limit, "most of them")
}

func lettersList(s *settings) *cobra.Command {
	var f adminapi.ManyLetters
	var before string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List dead letters, newest first", Example: `  sluice dead-letters list --provider openai`, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{"limit": {strconv.Itoa(f.Limit)}}
			for name, value := range map[string]string{"provider": f.Provider, "reason": f.Reason, "from": f.From, "to": f.To, "before": before} {
				if value != "" {
					q.Set(name, value)
				}
			}
			return s.asOperator(cmd, func(ask operator) error {
				var list adminapi.DeadLetterList
				if err := ask(http.MethodGet, adminapi.DeadLettersPath+"?"+q.Encode(), nil, &list); err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), list)
				}
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
				fmt.Fprintln(t, "ID\tAT\tKIND\tPROVIDER\tLANE\tJOB\tBYTES\tREASON")
				for _, l := range list.DeadLetters {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%q\t%d\t%q\n", l.ID, stamp(l.At), l.Kind, l.Provider, l.Lane, l.JobID, l.Bytes, l.Reason)
				}
				if err := t.Flush(); err != nil || list.Before == "" {
					return err
				}
				_, err := fmt.Fprintf(cmd.ErrOrStderr(), "There are more: --before %s\n", list.Before)
				return err
			})
		},
	}
	letterFlags(cmd, &f, 20)
	cmd.Flags().StringVar(&before, "before", "", "where the list before this one ended")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func lettersShow(s *settings) *cobra.Command {
	var body bool
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show all that is known of a dead letter, as JSON",
		Long: `Show all that is known of a dead letter, as JSON. With --body also what a client wrote,
as text, or as body_base64 where it is none; that it was read is kept.`,
		Example: `  sluice dead-letters show dead_17`, Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			path := letterPath(args[0])
			if body {
				path += "?body=true"
			}
			return s.asOperator(cmd, func(ask operator) error {
				var l adminapi.DeadLetter
				if err := ask(http.MethodGet, path, nil, &l); err != nil {
					return err
				}
				return printJSON(cmd.OutOrStdout(), readable(l))
			})
		},
	}
	cmd.Flags().BoolVar(&body, "body", false, "show the body, too")
	return cmd
}

// readableLetter is a dead letter whose body a person can read.
type readableLetter struct {
	adminapi.DeadLetter
	Body   string `json:"body,omitempty"`
	Base64 []byte `json:"body_base64,omitempty"`
}

func readable(l adminapi.DeadLetter) readableLetter {
	shown := readableLetter{DeadLetter: l}
	if utf8.Valid(l.Body) {
		shown.Body = string(l.Body)
	} else {
		shown.Base64 = l.Body
	}
	return shown
}

// lettersMany is requeue or drop: of one dead letter by its id, or with --all of those that
// the flags select.
func lettersMany(s *settings, verb, short, path string) *cobra.Command {
	var f adminapi.ManyLetters
	var all, yes, asJSON bool
	cmd := &cobra.Command{
		Use: verb + " [ID]", Short: short, Example: "  sluice dead-letters " + verb + " dead_17",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 || (len(args) == 1) == all || len(args) == 1 && args[0] == "" {
				return usageError{fmt.Errorf("%s takes one id, or --all", cmd.CommandPath())}
			}
			for _, name := range []string{"provider", "reason", "from", "to", "limit"} {
				if !all && cmd.Flags().Changed(name) {
					return usageError{fmt.Errorf("--%s goes with --all", name)}
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if verb == "drop" {
				if err := notSure(cmd, yes, "removes dead letters"); err != nil {
					return err
				}
			}
			return s.asOperator(cmd, func(ask operator) error {
				done, err := changeLetters(ask, verb, path, args, f)
				if err != nil && len(done.Failed)+len(done.Requeued)+done.Dropped == 0 {
					return err
				}
				return errors.Join(tellLetters(cmd, done, asJSON), err)
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all that the other flags select, up to --limit")
	letterFlags(cmd, &f, 100)
	if verb == "drop" {
		yesFlag(cmd, &yes)
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func changeLetters(ask operator, verb, path string, args []string, f adminapi.ManyLetters) (done adminapi.LettersDone, err error) {
	switch {
	case len(args) == 0:
		return changeEach(ask, path, f)
	case verb == "drop":
		if err := ask(http.MethodDelete, letterPath(args[0]), nil, nil); err != nil {
			return done, err
		}
		done.Dropped = 1
		return done, nil
	}
	var one adminapi.LetterRequeued
	if err := ask(http.MethodPost, letterPath(args[0])+path, nil, &one); err != nil {
		return done, err
	}
	done.Requeued = append(done.Requeued, one)
	return done, nil
}

// lettersAtOnce is how many letters one request is about at most.
const lettersAtOnce = 1000

// changeEach goes on until as many letters are changed as f says, or none is left. Those that
// stay are passed by.
func changeEach(ask operator, path string, f adminapi.ManyLetters) (all adminapi.LettersDone, err error) {
	for most := f.Limit; ; {
		f.Limit = most - len(all.Requeued) - all.Dropped
		if most > 0 { // what is wrong with any other number, the ingress says
			f.Limit = min(f.Limit, lettersAtOnce)
		}
		var done adminapi.LettersDone
		if err := ask(http.MethodPost, adminapi.DeadLettersPath+path, f, &done); err != nil {
			return all, err
		}
		all.Requeued, all.Failed = append(all.Requeued, done.Requeued...), append(all.Failed, done.Failed...)
		all.Dropped += done.Dropped
		all.More, all.Next = done.More, done.Next
		if done.Next == "" || len(all.Requeued)+all.Dropped >= most {
			return all, nil
		}
		f.Before = done.Next
	}
}

func tellLetters(cmd *cobra.Command, done adminapi.LettersDone, asJSON bool) error {
	out := cmd.OutOrStdout()
	if asJSON {
		if err := printJSON(out, done); err != nil {
			return err
		}
	} else {
		for _, r := range done.Requeued {
			fmt.Fprintf(out, "%s is sent again as %s %s\n", r.ID, r.As, r.JobID)
		}
		for _, f := range done.Failed {
			fmt.Fprintf(out, "%s stays: %s\n", f.ID, f.Message)
		}
		if done.Dropped > 0 {
			fmt.Fprintf(out, "%s dropped.\n", counted(done.Dropped, "dead letter", "dead letters"))
		}
		if done.More {
			fmt.Fprintln(out, "There are more.")
		}
	}
	if len(done.Failed) > 0 {
		return errors.New("some dead letters could not be sent again")
	}
	return nil
}
