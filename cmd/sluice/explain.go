package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"sluice/internal/adminapi"
	"sluice/internal/config"
	"sluice/internal/routing"
)

func routeCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "route",
		Short: "Show how requests are routed",
		Example: `  sluice route explain --model gpt-4o --config sluice.yaml
  sluice route explain --model gpt-4o --live --config sluice.yaml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(routeExplain(s))
	return cmd
}

// explainer is the command line of 'route explain'.
type explainer struct {
	request           adminapi.ExplainRequest
	headers, metadata []string // name=value
	live, json        bool
}

func routeExplain(s *settings) *cobra.Command {
	var e explainer
	cmd := &cobra.Command{
		Use:   "explain --model MODEL",
		Short: "Say which providers a request would go to, and why",
		Long: `Say which providers a request would go to, in which order, and why each came to its
place; then who is left out and why. Nothing is sent to a provider.

The configuration alone decides, as if every provider were well, idle, and able to do
whatever "capabilities" does not deny. With --live the running ingress is asked at
admin.address, with admin.token: it knows who is well, how busy, and what each model can
do.

It exits with 1 when nobody could serve the request.`,
		Example: `  sluice route explain --model gpt-4o --config sluice.yaml
  sluice route explain --model fast --tenant acme --images --stream
  sluice route explain --model gpt-4o --header x-session=42 --metadata purpose=nightly-7
  sluice route explain --model text-embedding-3-small --endpoint embeddings --json
  sluice route explain --model gpt-4o --prompt-tokens 200000 --live`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.run(cmd, s) },
	}
	e.addFlags(cmd)
	return cmd
}

func (e *explainer) addFlags(cmd *cobra.Command) {
	f, r := cmd.Flags(), &e.request
	f.StringVar(&r.Model, "model", "", "model or alias that the client asks for")
	f.StringVar(&r.Endpoint, "endpoint", adminapi.EndpointChat, "chat or embeddings")
	f.StringVar(&r.Tenant, "tenant", "default", "tenant of the client's key")
	f.StringVar(&r.Key, "key", "", "name or id of the client's key")
	f.StringArrayVar(&e.headers, "header", nil, "header of the request, as name=value; may be given several times")
	f.StringArrayVar(&e.metadata, "metadata", nil, "entry of the request's field metadata, as name=value; may be given several times")
	f.StringVar(&r.User, "user", "", "end user whom the request names")
	f.BoolVar(&r.Stream, "stream", false, "the answer is streamed")
	f.BoolVar(&r.Tools, "tools", false, "the request offers tools")
	f.BoolVar(&r.Images, "images", false, "the request holds images")
	f.BoolVar(&r.StructuredOutput, "structured-output", false, "the answer is to follow a JSON Schema")
	f.IntVar(&r.PromptTokens, "prompt-tokens", 0, "estimated length of the prompt")
	f.IntVar(&r.OutputTokens, "output-tokens", 0, "most tokens that the answer may have")
	f.BoolVar(&e.live, "live", false, "ask the running ingress")
	f.BoolVar(&e.json, "json", false, "print JSON")
}

func (e *explainer) run(cmd *cobra.Command, s *settings) error {
	if err := e.check(); err != nil {
		return usageError{err}
	}
	var answer adminapi.ExplainResponse
	var notes []string
	var err error
	if e.live {
		answer, err = e.askIngress(cmd, s)
	} else {
		answer, notes, err = e.decide(cmd, s)
	}
	if err != nil {
		return err
	}
	if err := e.print(cmd.OutOrStdout(), answer, notes); err != nil {
		return err
	}
	return e.verdict(answer)
}

// check completes the request, or says what about it cannot be meant.
func (e *explainer) check() error {
	r := &e.request
	if r.Model == "" {
		return errors.New("--model is missing: name the model that the client asks for")
	}
	if r.Endpoint != adminapi.EndpointChat && r.Endpoint != adminapi.EndpointEmbeddings {
		return fmt.Errorf("--endpoint %s: want chat or embeddings", r.Endpoint)
	}
	if r.Endpoint == adminapi.EndpointEmbeddings && (r.Stream || r.Tools || r.Images || r.StructuredOutput || r.OutputTokens != 0) {
		return errors.New("--stream, --tools, --images, --structured-output and --output-tokens go with --endpoint chat alone")
	}
	if r.PromptTokens < 0 || r.OutputTokens < 0 {
		return errors.New("--prompt-tokens and --output-tokens must not be negative")
	}
	var err error
	if r.Headers, err = pairs("--header", e.headers); err != nil {
		return err
	}
	r.Metadata, err = pairs("--metadata", e.metadata)
	return err
}

// pairs reads the values of a flag that is given as name=value. The message leaves the
// value out: a header may be a secret.
func pairs(flag string, given []string) (map[string]string, error) {
	values := make(map[string]string, len(given))
	for _, pair := range given {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%s is written as name=value", flag)
		}
		values[name] = value
	}
	return values, nil
}

// decide answers from the configuration. The notes say what a running ingress would do
// otherwise.
func (e *explainer) decide(cmd *cobra.Command, s *settings) (adminapi.ExplainResponse, []string, error) {
	loaded, err := s.loadAndWarn(cmd.ErrOrStderr(), config.RoleRouting)
	if err != nil {
		return adminapi.ExplainResponse{}, nil, err
	}
	cfg := loaded.Config
	if len(cfg.Providers) == 0 {
		return adminapi.ExplainResponse{}, nil, errors.New("the configuration has no providers; name its file with --config, or ask a running ingress with --live")
	}
	q := e.request.Question()
	q.Random = rand.Uint64()
	decision := configuredTable(cfg).Explain(q)
	return adminapi.Explained(decision), notesOn(cfg, decision), nil
}

// notesOn says what the configuration alone cannot tell of a decision.
func notesOn(cfg *config.Config, d routing.Decision) []string {
	notes := []string{"The configuration alone decided, as if every provider were well and idle."}
	i := slices.IndexFunc(cfg.Routing.Rules, func(r config.Rule) bool { return r.Name == d.Rule })
	if i >= 0 && d.Rule != "" && len(cfg.Routing.Rules[i].Targets) > 1 {
		switch routing.Strategy(cfg.Routing.Rules[i].Strategy) {
		case routing.StrategyWeighted:
			notes = append(notes, "The order of a weighted rule is by chance: the next request may get another one.")
		case routing.StrategyRoundRobin:
			notes = append(notes, "The order of a round-robin rule is another one with each request.")
		case routing.StrategyLeastBusy, routing.StrategyLowestLatency:
			notes = append(notes, "What this rule goes by only a running ingress knows: ask it with --live.")
		}
	}
	for _, c := range d.Candidates {
		if len(cfg.Providers[c.Provider].Models) == 0 {
			note := "The provider " + c.Provider + " names no models in the configuration, and is taken to serve all."
			if !slices.Contains(notes, note) {
				notes = append(notes, note)
			}
		}
	}
	return notes
}

// verdict is an error when nobody could serve the request.
func (e *explainer) verdict(a adminapi.ExplainResponse) error {
	switch {
	case len(a.Candidates) > 0:
		return nil
	case len(a.Lacking) > 0:
		return fmt.Errorf("no provider of the model %q supports %s", e.request.Model, strings.Join(a.Lacking, ", "))
	default:
		return fmt.Errorf("no provider serves the model %q", e.request.Model)
	}
}

func (e *explainer) print(w io.Writer, a adminapi.ExplainResponse, notes []string) error {
	if e.json {
		encoder := json.NewEncoder(w)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		return encoder.Encode(a)
	}
	if len(a.Candidates)+len(a.Excluded) == 0 {
		return nil
	}
	model := a.Model
	if model != e.request.Model {
		model += " (" + e.request.Model + " is an alias of it)"
	}
	rule := a.Rule
	if rule == "" {
		rule = "none applies"
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(t, "model\t%s\nrule\t%s\n", model, rule)
	if err := t.Flush(); err != nil {
		return err
	}
	for i, c := range a.Candidates {
		fmt.Fprintf(t, "%d\t%s/%s\t%s\n", i+1, c.Provider, c.Model, c.Why)
	}
	for _, x := range a.Excluded {
		fmt.Fprintf(t, "-\t%s/%s\t%s\n", x.Provider, x.Model, x.Why)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for i, note := range notes {
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, note)
	}
	return nil
}
