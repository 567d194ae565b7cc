package config

import "time"

// Cache configures answers that are kept and given again for the same request. Nothing
// is cached unless a rule or the request itself asks for it.
type Cache struct {
	// Bytes of answers that one ingress keeps in memory. 0B: none.
	MemoryBytes Size `yaml:"memory_bytes" reload:"restart" default:"64MiB" min:"0" max:"1TiB"`
	// Bytes of answers in the database. The oldest go first. 0B: none are kept there.
	DatabaseBytes Size `yaml:"database_bytes" reload:"restart" default:"1GiB" min:"0" max:"1PiB"`
	// Largest answer that is kept.
	MaxAnswerBytes Size `yaml:"max_answer_bytes" default:"1MiB" min:"1KiB" max:"64MiB"`
	// How long an answer is kept that a request asks to keep without a rule for it.
	TTL time.Duration `yaml:"ttl" default:"1h" min:"1s" max:"8760h"`
	// Whether requests may ask for the cache where no rule does, with Cache-Control: max-age=SECONDS.
	ByRequest bool `yaml:"by_request" default:"true"`
	// Which requests are served from the cache. The first rule whose condition holds decides.
	Rules []CacheRule `yaml:"rules" max:"256"`
}

// CacheRule says how the requests are cached that meet its condition.
type CacheRule struct {
	// Name of the rule in error messages, unique among the rules.
	Name string `yaml:"name"`
	// Which requests the rule is for. Not given: all of them.
	When When `yaml:"when"`
	// Whether they are cached at all.
	Enabled bool `yaml:"enabled" default:"true"`
	// How long an answer is kept and given as fresh.
	TTL time.Duration `yaml:"ttl" default:"1h" min:"1s" max:"8760h"`
	// How much longer an answer may be given, marked as stale, when no provider can serve the request.
	StaleIfError time.Duration `yaml:"stale_if_error" default:"0s" min:"0s" max:"8760h"`
	// Who shares an answer: the requests of a tenant, or of a key.
	Scope string `yaml:"scope" default:"tenant" oneof:"tenant,key"`
	// Whether identical requests under way at once make one call, whose answer all of them get.
	Coalesce bool `yaml:"coalesce" default:"false"`
}
