package config

import (
	"net"
	glob "path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sluice/internal/routing"
)

var (
	ruleName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)
	adminToken = regexp.MustCompile(`^[!-~]+$`)
)

// routing checks the order of providers and the rules. What makes a rule impossible
// package routing knows.
func (v *validator) routing() {
	if v.faults.within(path{"providers"}) && len(v.config.Providers) == 0 {
		return // unread providers are not unknown ones
	}
	v.order()
	r := v.config.Routing
	for i, rule := range r.Rules {
		v.rule(rule, path{"routing", "rules"}.at(i))
	}
	policy := r.Policy()
	for i, rule := range policy.Rules {
		if rule.Name != "" && !ruleName.MatchString(rule.Name) {
			policy.Rules[i].Name = "at index " + strconv.Itoa(i) // a fault of another rule may name it
		}
	}
	for _, fault := range policy.Faults(v.known) {
		v.policyFault(fault)
	}
}

// known reports whether the configuration has the provider.
func (v *validator) known(provider string) bool {
	_, known := v.config.Providers[provider]
	return known
}

func (v *validator) order() {
	seen := make(map[string]bool)
	for i, name := range v.config.Routing.Order {
		at := path{"routing", "order"}.at(i)
		switch {
		case !v.known(name):
			v.wrong("names no provider of this configuration", at...)
		case seen[name]:
			v.wrong("names a provider a second time", at...)
		}
		seen[name] = true
	}
}

// rule checks what the settings of a rule say beyond what a policy can.
func (v *validator) rule(rule Rule, at path) {
	if rule.Name != "" && !ruleName.MatchString(rule.Name) {
		v.wrong("must begin with a letter or digit and hold only these, -, _ and ., 63 characters at most", at.with("name")...)
	}
	for i, f := range rule.Fallback {
		if len(f.On) == 0 {
			v.wrong(ofRule(rule.Name)+"is empty, so that these targets would never be tried; remove the key for unavailable, rate_limited and timeout", at.with("fallback").at(i).with("on")...)
		}
	}
	v.weights(rule, at.with("targets"))
}

// weights refuses weights that nobody looks at. Zero is one that everybody does.
func (v *validator) weights(rule Rule, at path) {
	for i, t := range rule.Targets {
		if rule.Strategy == string(routing.StrategyOrdered) && t.Weight > 1 {
			v.wrong(ofRule(rule.Name)+"is of no use: the strategy ordered goes by the order alone", at.at(i).with("weight")...)
		}
	}
}

// policyFault notes where in the file a fault of the policy stands.
func (v *validator) policyFault(fault routing.Fault) {
	at := path{"routing"}
	problem := fault.Problem
	if fault.Rule >= 0 && fault.Rule < len(v.config.Routing.Rules) {
		at = at.with("rules").at(fault.Rule)
		problem = ofRule(v.config.Routing.Rules[fault.Rule].Name) + problem
	}
	for _, segment := range fault.Path {
		if list := v.root.lookup(at); list != nil && list.kind == nodeList {
			segment = "[" + segment + "]"
		}
		at = at.with(segment)
	}
	if !v.faults.within(at) { // else it is what could not be read that is missing
		v.wrong(problem, at...)
	}
}

// ofRule begins a fault with the rule's name, if it has one that looks like one.
func ofRule(name string) string {
	if !ruleName.MatchString(name) {
		return ""
	}
	return "in the rule " + name + ": "
}

func (v *validator) capabilities(capabilities []Capability, at path) {
	var earlier []string
	for i, c := range capabilities {
		v.models(c.Models, earlier, at.at(i))
		earlier = append(earlier, c.Models...)
		if v.faults.within(at.at(i)) {
			continue
		}
		if c.Chat == nil && c.Embeddings == nil && c.Streaming == nil && c.Tools == nil && c.Images == nil && c.StructuredOutput == nil &&
			c.ContextTokens == nil && c.OutputTokens == nil {
			v.wrong("says nothing of these models; write what they can do, such as images: false", at.at(i)...)
		}
	}
}

// models checks the models of one entry of a list in which the first that covers a
// model counts.
func (v *validator) models(models, earlier []string, at path) {
	if len(models) == 0 {
		v.wrong(`is missing; name models or globs, such as "*" for all`, at.with("models")...)
		return
	}
	v.globs(models, at.with("models"))
	for i, model := range models {
		if covered(model, earlier) {
			v.wrong("never counts: an earlier entry covers the same models", at.with("models").at(i)...)
		}
	}
}

// covered reports whether earlier names or globs leave nothing to the model. It may
// miss a glob that is wider than another.
func covered(model string, earlier []string) bool {
	if slices.Contains(earlier, model) || slices.Contains(earlier, "*") {
		return true
	}
	return !strings.ContainsAny(model, `*?[\`) && routing.MatchesAny(earlier, model)
}

func (v *validator) globs(models []string, at path) {
	for i, model := range models {
		if _, err := glob.Match(model, ""); err != nil || model == "" {
			v.wrong(`must be a model's name or a glob, such as "gpt-4o*"; [ and \ have a meaning in globs`, at.at(i)...)
		}
	}
}

func (v *validator) admin() {
	a := v.config.Admin
	v.listenAddress(a.Address, "admin", "address")
	switch {
	case a.Address == "" && a.Token == "":
		return
	case a.Address == "":
		v.wrong("needs admin.address beside it", "admin", "token")
		return
	case a.Token == "" && len(a.Operators) > 0: // each of them has a token of their own
	case len(a.Token) < minKeyLength:
		v.wrong("must have 16 characters or more: it lets an operator in", "admin", "token")
	case !adminToken.MatchString(a.Token.Reveal()):
		v.wrong("must hold no space and nothing but ASCII: it travels in a header", "admin", "token")
	case slices.ContainsFunc(v.config.Auth.Keys, func(k StaticKey) bool { return k.Key == a.Token }):
		v.wrong("is a client's key too; a client is no operator", "admin", "token")
	}
	if !v.opts.withheld(path{"server"}, "") && sameAddress(a.Address, v.config.Server.Address) {
		v.wrong("must not be where clients are served, at server.address", "admin", "address")
	}
}

// sameAddress reports whether only one of two listeners could have its address. Port 0
// is a free one each time.
func sameAddress(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	return hostA == hostB || everywhere(hostA) || everywhere(hostB)
}

// everywhere reports whether a host to listen on stands for every interface.
func everywhere(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}
