package config

import (
	"strconv"

	"sluice/internal/routing"
)

// cache checks the bounds of the cache and its rules. What makes a condition impossible
// package routing knows: a rule of the cache has the conditions of one of routing.
func (v *validator) cache() {
	c := v.config.Cache
	at := path{"cache"}
	switch largest := max(c.MemoryBytes, c.DatabaseBytes); {
	case largest == 0 && len(c.Rules) > 0:
		v.wrong("keep nothing while cache.memory_bytes and cache.database_bytes are 0B both", at.with("rules")...)
		return
	case largest > 0 && c.MaxAnswerBytes > largest:
		v.wrong("must not be more than cache.memory_bytes and cache.database_bytes both: such an answer could never be kept", at.with("max_answer_bytes")...)
	}
	var policy routing.Policy
	for i, rule := range c.Policy().Rules {
		name := rule.Name
		if name != "" && !ruleName.MatchString(name) {
			name = "at index " + strconv.Itoa(i) // a fault of another rule may name it
			v.wrong("must begin with a letter or digit and hold only these, -, _ and ., 63 characters at most", at.with("rules").at(i).with("name")...)
		}
		// Where a rule of the cache sends a request is nowhere; the target stands for that.
		policy.Rules = append(policy.Rules, routing.Rule{Name: name, When: rule.When, Targets: []routing.Target{{Provider: "any", Weight: 1}}})
		v.cacheRule(i, at.with("rules").at(i))
	}
	for _, fault := range policy.Faults(func(string) bool { return true }) {
		v.cacheFault(fault)
	}
}

// cacheRule refuses settings that do nothing.
func (v *validator) cacheRule(i int, at path) {
	c := v.config.Cache
	rule := c.Rules[i]
	if rule.Enabled {
		return
	}
	if rule.StaleIfError > 0 {
		v.wrong(ofRule(rule.Name)+"is of no use: the rule keeps no answer", at.with("stale_if_error")...)
	}
	if rule.Coalesce {
		v.wrong(ofRule(rule.Name)+"is of no use: requests of a rule that is not enabled share no answer", at.with("coalesce")...)
	}
	for _, later := range c.Rules[i+1:] {
		if later.Enabled {
			return
		}
	}
	if !c.ByRequest {
		v.wrong(ofRule(rule.Name)+"takes requests out that nothing would cache: no later rule is enabled, and by_request is false", at.with("enabled")...)
	}
}

// cacheFault notes where in the file a fault of a rule's condition stands.
func (v *validator) cacheFault(fault routing.Fault) {
	at, problem := path{"cache"}, fault.Problem
	if fault.Rule >= 0 && fault.Rule < len(v.config.Cache.Rules) {
		at = at.with("rules").at(fault.Rule)
		problem = ofRule(v.config.Cache.Rules[fault.Rule].Name) + problem
	} else {
		at = at.with("rules")
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
