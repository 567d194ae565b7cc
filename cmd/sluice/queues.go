package main

import (
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sluice/internal/adminapi"
)

func queuesCommand(s *settings) *cobra.Command {
	return groupCommand("queues", "Look at providers' queues, and empty them",
		`Look at providers' queues, and empty them. These commands ask a running ingress, at
admin.address with admin.token.`,
		`  sluice queues list
  sluice queues purge openai --lane interactive --older-than 5m --yes`,
		queuesList(s), queuesPurge(s))
}

func queuesList(s *settings) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List the lanes of all queues", Example: `  sluice queues list`, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.asOperator(cmd, func(ask operator) error {
				var list adminapi.QueueList
				if err := ask(http.MethodGet, adminapi.QueuesPath, nil, &list); err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), list)
				}
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
				fmt.Fprintln(t, "PROVIDER\tSTATE\tLANE\tWAITING\tRUNNING\tOLDEST\tBOUND\tBYTES")
				for _, q := range list.Queues {
					for _, l := range q.Lanes {
						oldest := "-"
						if l.Oldest != nil {
							oldest = time.Duration(l.OldestSeconds * float64(time.Second)).Round(time.Second).String()
						}
						fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s\t%d\t%d\n", q.Provider, q.State, l.Lane, l.Waiting, l.Running, oldest, l.Bound, l.Bytes)
					}
				}
				return t.Flush()
			})
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func queuesPurge(s *settings) *cobra.Command {
	var req adminapi.PurgeQueue
	var older time.Duration
	var yes, asJSON bool
	cmd := &cobra.Command{
		Use: "purge PROVIDER", Short: "End the jobs of a lane that no worker has",
		Long: `End the jobs of a lane that no worker has. Clients that wait get an error and may send
their request again; background jobs and lines of batches end as cancelled. Each has its
row in the ledger.`,
		Example: `  sluice queues purge openai --lane batch --yes`, Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := notSure(cmd, yes, "ends all jobs of the lane that wait"); err != nil {
				return err
			}
			if cmd.Flags().Changed("older-than") {
				req.OlderThan = older.String()
			}
			return s.asOperator(cmd, func(ask operator) error {
				sum, err := purgeAll(ask, args[0], req)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), sum)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s ended, %s.\n", counted(sum.Ended, "job", "jobs"), counted(sum.Kept, "is with a worker", "are with workers"))
				return err
			})
		},
	}
	cmd.Flags().StringVar(&req.Lane, "lane", "interactive", "lane to empty: interactive, background or batch")
	cmd.Flags().DurationVar(&older, "older-than", 0, "end only jobs that came longer ago, such as 10m; all if not given")
	yesFlag(cmd, &yes)
	jsonFlag(cmd, &asJSON)
	return cmd
}

// purgeRounds bounds how often a lane is purged that fills as fast as it is emptied.
const purgeRounds = 200

// purgeAll asks until nothing is left that one request did not reach.
func purgeAll(ask operator, provider string, req adminapi.PurgeQueue) (sum adminapi.PurgedQueue, err error) {
	for range purgeRounds {
		var done adminapi.PurgedQueue
		if err := ask(http.MethodPost, adminapi.QueuesPath+"/"+url.PathEscape(provider)+adminapi.PurgePath, req, &done); err != nil {
			return sum, err
		}
		sum.Ended, sum.Removed, sum.Kept, sum.More = sum.Ended+done.Ended, sum.Removed+done.Removed, done.Kept, done.More
		if !done.More {
			break
		}
	}
	return sum, nil
}
