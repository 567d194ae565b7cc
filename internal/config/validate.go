package config

import (
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sluice/store"
)

const (
	providerNamePattern = `^[a-z0-9][a-z0-9_-]{0,62}$`
	minKeyLength        = 16
)

// validator checks what one value's type and bounds cannot say.
type validator struct {
	config *Config
	opts   Options
	root   *node
	faults *faults
}

func validate(c *Config, opts Options, root *node, f *faults) {
	v := &validator{config: c, opts: opts, root: root, faults: f}
	v.server()
	v.queue()
	v.store()
	v.files()
	v.batches()
	v.auth()
	v.jwt()
	v.cors()
	v.limits()
	v.providers()
	v.routing()
	v.listenAddress(c.Observability.Address, "observability", "address")
	v.admin()
	v.operators()
	v.cache()
}

// wrong notes a fault of the setting at p.
func (v *validator) wrong(problem string, p ...string) {
	v.faults.add(v.root.where(p), p, "%s", problem)
}

func (v *validator) server() {
	c := v.config
	if c.Server.Address == "" {
		v.wrong("must not be empty; write host:port, such as 127.0.0.1:8080", "server", "address")
	}
	v.listenAddress(c.Server.Address, "server", "address")
	if c.Server.BodyMemory < c.Server.MaxBodyBytes {
		v.wrong("must not be less than server.max_body_bytes: such a body could never be taken", "server", "body_memory")
	}
	if c.Server.DrainDelay > c.Server.DrainTimeout {
		v.wrong("must not be longer than server.drain_timeout, which it is a part of", "server", "drain_delay")
	}
	if c.Queue.BodiesMaxBytes < c.Server.MaxBodyBytes {
		v.wrong("must not be less than server.max_body_bytes: such a body could never be kept", "queue", "bodies_max_bytes")
	}
	if c.Server.ResumeWindow > c.Queue.EventsMaxAge {
		v.wrong("must not be longer than queue.events_max_age: older events cannot be replayed", "server", "resume_window")
	}
	if c.DataDir == "" {
		v.wrong("must not be empty; name a directory, such as ./data", "data_dir")
	}
}

func (v *validator) listenAddress(address string, p ...string) {
	if address == "" {
		return
	}
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		v.wrong("must be host:port with a port from 0 to 65535, such as 127.0.0.1:8080", p...)
	}
}

func (v *validator) queue() {
	q := v.config.Queue
	external := q.URL != ""
	if external {
		for _, part := range splitURLs(q.URL.Reveal()) {
			if !validURL(part, "nats", "tls", "ws", "wss") {
				v.wrong("must be nats://host:4222, or tls://, ws:// or wss://; several with commas between them", "queue", "url")
			}
		}
	}
	if !external && v.opts.apart() {
		v.wrong("must name a NATS server: an ingress and a worker in separate processes meet there", "queue", "url")
	}
	if !external && q.Replicas > 1 {
		v.wrong("must be 1 unless queue.url names a NATS cluster", "queue", "replicas")
	}
	if q.Password != "" && q.User == "" {
		v.wrong("needs queue.user beside it", "queue", "password")
	}
	if q.TLS.CertFile != "" && q.TLS.KeyFile == "" {
		v.wrong("needs queue.tls.key_file beside it", "queue", "tls", "cert_file")
	}
	if q.TLS.KeyFile != "" && q.TLS.CertFile == "" {
		v.wrong("needs queue.tls.cert_file beside it", "queue", "tls", "key_file")
	}
}

func (v *validator) store() {
	if u := v.config.Store.URL; u != "" && !validURL(u.Reveal(), "postgres", "postgresql") {
		v.wrong("must be postgres://user:password@host:5432/database, or empty for SQLite; characters such as / and @ in a password are written as %2F and %40", "store", "url")
	}
}

func (v *validator) files() {
	f := v.config.Files
	if f.MaxBatchBytes > f.MaxBytes {
		v.wrong("must not be more than files.max_bytes, which holds for every file", "files", "max_batch_bytes")
	}
	if f.StoreMaxBytes < f.MaxBytes {
		v.wrong("must not be less than files.max_bytes: such a file could never be kept", "files", "store_max_bytes")
	}
}

// batches checks that what a line may be can be taken in.
func (v *validator) batches() {
	if v.config.Batches.MaxLineBytes > min(v.config.Server.MaxBodyBytes, Size(store.MaxInlineBytes)) {
		v.wrong("must not be more than server.max_body_bytes, nor than 64MiB", "batches", "max_line_bytes")
	}
}

func (v *validator) auth() {
	names := make(map[string]bool)
	keys := make(map[Secret]bool)
	for i, key := range v.config.Auth.Keys {
		at := path{"auth", "keys"}.at(i)
		switch {
		case len(key.Key) < minKeyLength:
			v.wrong("must have 16 characters or more", at.with("key")...)
		case keys[key.Key]:
			v.wrong("is the same as an earlier key", at.with("key")...)
		}
		if names[key.Name] {
			v.wrong("is the name of an earlier key; names are unique", at.with("name")...)
		}
		names[key.Name], keys[key.Key] = true, true
		// What a key of the database must be, one of the file must be too.
		for _, fault := range (store.Key{ID: key.Name, Name: key.Name, Tenant: key.Tenant, Models: key.Models}).Faults() {
			where := at.with(fault.Field)
			if fault.Model > 0 {
				where = where.at(fault.Model - 1)
			}
			if fault.Field != "id" { // there is none in the file
				v.wrong(fault.Problem, where...)
			}
		}
	}
}

func (v *validator) providers() {
	if len(v.config.Providers) == 0 && v.opts.apart() {
		v.wrong("must name at least one provider", "providers")
	}
	valid := regexp.MustCompile(providerNamePattern)
	for name, p := range v.config.Providers {
		at := path{"providers", name}
		if !valid.MatchString(name) {
			v.wrong("must begin with a lower-case letter or digit and hold only these, - and _, 63 characters at most", at...)
			continue
		}
		v.provider(p, at)
		v.globs(p.Models, at.with("models"))
		v.capabilities(p.Capabilities, at.with("capabilities"))
		v.prices(p.Prices, at.with("prices"))
	}
}

func (v *validator) provider(p Provider, at path) {
	reads := !v.opts.withheld(at, RoleWorker)
	switch {
	case p.Type == "" && reads:
		v.wrong("is missing; write openai for an OpenAI-compatible upstream, or anthropic, gemini, custom or sim", at.with("type")...)
	case (p.Type == TypeOpenAI || p.Type == TypeCustom) && reads && p.BaseURL == "":
		v.wrong("is missing; write the address of the upstream's API, such as https://api.openai.com/v1", at.with("base_url")...)
	}
	v.upstream(p, at)
	if p.Proxy != "" && !validURL(p.Proxy.Reveal(), "http", "https", "socks5") {
		v.wrong("must be an http, https or socks5 address, such as http://proxy:3128", at.with("proxy")...)
	}
	if p.APIKey != "" && len(p.APIKeys) > 0 {
		v.wrong("stands beside api_key; write all keys here", at.with("api_keys")...)
	}
	for i, k := range p.APIKeys {
		if k.Key == "" && reads {
			v.wrong("must not be empty", at.with("api_keys").at(i).with("key")...)
		}
	}
	v.providerSections(p, at)
	if p.WorkerConcurrency > p.Concurrency {
		v.wrong("must not be more than concurrency, which holds across all workers", at.with("worker_concurrency")...)
	}
	if p.MinConcurrency > p.Concurrency {
		v.wrong("must not be more than concurrency", at.with("min_concurrency")...)
	}
	if p.MaxSlowdown > 0 && p.MaxSlowdown <= 1 {
		v.wrong("must be more than 1, or 0: an upstream is always as slow as it usually is", at.with("max_slowdown")...)
	}
}

// providerSections checks the settings that only some types have.
func (v *validator) providerSections(p Provider, at path) {
	for _, section := range []struct {
		name, kind string
		given      bool
	}{
		{"azure", TypeOpenAI, p.Azure != nil}, {"custom", TypeCustom, p.Custom != nil}, {"sim", TypeSim, p.Sim != nil},
	} {
		if section.given && p.Type != "" && p.Type != section.kind {
			v.wrong("is only for a provider of the type "+section.kind, at.with(section.name)...)
		}
	}
	v.idle(p, at)
	if p.Azure != nil && p.Azure.APIVersion == "" {
		v.wrong("is missing; write a version of the API, such as 2024-10-21", at.with("azure").with("api_version")...)
	}
	if p.Azure != nil && len(p.Models) == 0 {
		v.wrong("is missing: Azure does not tell what is deployed", at.with("models")...)
	}
	if p.Custom != nil && p.Custom.ModelsPath == "" && len(p.Models) == 0 {
		v.wrong("is missing; name the models, or write custom.models_path", at.with("models")...)
	}
	if p.Type == TypeCustom && p.Custom == nil {
		v.wrong("is missing: it says where the upstream has what", at.with("custom")...)
	}
}

// idle refuses settings that would do nothing for a provider of this type.
func (v *validator) idle(p Provider, at path) {
	translates := p.Type == TypeAnthropic || p.Type == TypeGemini
	if p.OnUnsupported == OnUnsupportedDrop && p.Type != "" && !translates {
		v.wrong("is only for the types anthropic and gemini: others get the request as it came", at.with("on_unsupported")...)
	}
	if p.Type != TypeSim {
		return
	}
	for _, setting := range []struct {
		name  string
		given bool
	}{
		{"api_keys", len(p.APIKeys) > 0}, {"headers", len(p.Headers) > 0}, {"proxy", p.Proxy != ""}, {"model_map", len(p.ModelMap) > 0},
	} {
		if setting.given {
			v.wrong("is of no use to a provider of the type sim, which calls nobody", at.with(setting.name)...)
		}
	}
}

// validURL reports whether text is a URL with a host and one of the schemes.
func validURL(text string, schemes ...string) bool {
	u, err := url.Parse(text)
	return err == nil && slices.Contains(schemes, strings.ToLower(u.Scheme)) && u.Host != "" && u.Opaque == ""
}
