package config

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Found is something that can answer requests, found without a configuration file.
type Found struct {
	Name     string    // the provider's name
	What     string    // what was found, for a person to read; no secret
	Provider *Provider // how to use it; nil if it cannot be used
	Why      string    // why it is not used; empty if it is
}

// Addresses that hold where the environment says nothing else.
const (
	openAIBaseURL = "https://api.openai.com/v1"
	ollamaAddress = "127.0.0.1"
	ollamaPort    = "11434"
	probeTimeout  = 500 * time.Millisecond
)

// Discover looks for providers in the environment and on this machine. It is meant
// for a start without any configured provider. probe reports whether something
// answers at an address; Probe is the one for real use. The simulated provider is
// always found, last.
func Discover(ctx context.Context, environ []string, probe func(ctx context.Context, url string) bool) []Found {
	env := environMap(environ)
	var found []Found
	if env["OPENAI_API_KEY"] != "" {
		found = append(found, discoverOpenAI(env))
	}
	if ollama, ok := discoverOllama(ctx, env["OLLAMA_HOST"], probe); ok {
		found = append(found, ollama)
	}
	for _, other := range []struct{ kind, variable, models string }{
		{TypeGemini, "GEMINI_API_KEY", "gemini-*"}, {TypeAnthropic, "ANTHROPIC_API_KEY", "claude-*"},
	} {
		if env[other.variable] == "" {
			continue
		}
		p := NewProvider(other.kind)
		p.APIKey, p.Models = Secret(env[other.variable]), []string{other.models}
		found = append(found, Found{Name: other.kind, What: other.variable + " in the environment", Provider: &p})
	}
	sim := NewProvider(TypeSim)
	sim.Models = []string{"sim"}
	return append(found, Found{Name: "sim", What: "the simulated provider, which needs no account", Provider: &sim})
}

func discoverOpenAI(env map[string]string) Found {
	found := Found{Name: "openai", What: "OPENAI_API_KEY in the environment"}
	p := NewProvider(TypeOpenAI)
	p.APIKey = Secret(env["OPENAI_API_KEY"])
	p.BaseURL = openAIBaseURL
	p.Models = []string{"gpt-*", "o1*", "o3*", "o4*", "chatgpt-*"}
	if base := strings.TrimRight(strings.TrimSpace(env["OPENAI_BASE_URL"]), "/"); base != "" && base != openAIBaseURL {
		if !validURL(base, "http", "https") {
			found.Why = "OPENAI_BASE_URL is not an http or https address"
			return found
		}
		found.What += ", with OPENAI_BASE_URL"
		p.BaseURL = URL(base)
		p.Models = nil // another upstream has other models: a worker asks it
	}
	found.Provider = &p
	return found
}

// discoverOllama reports an Ollama that does not answer only where OLLAMA_HOST
// promises one.
func discoverOllama(ctx context.Context, host string, probe func(context.Context, string) bool) (Found, bool) {
	found := Found{Name: "ollama", What: "Ollama"}
	base, ok := ollamaURL(host)
	switch {
	case !ok:
		found.Why = "OLLAMA_HOST is not an address"
		return found, true
	case !probe(ctx, base+"/api/version"):
		found.Why = "nothing answers where OLLAMA_HOST points"
		return found, host != ""
	}
	p := NewProvider(TypeOpenAI)
	p.BaseURL = URL(base + "/v1")
	found.What += " at " + URL(base).String()
	found.Provider = &p
	return found, true
}

// ollamaURL reads OLLAMA_HOST as Ollama's own client does: scheme, host and port
// may each be left out, and an address that a server listens on everywhere means
// this machine. See https://github.com/ollama/ollama/blob/main/envconfig/config.go.
func ollamaURL(host string) (string, bool) {
	host = strings.Trim(strings.TrimSpace(host), `"'`)
	port := ollamaPort
	if !strings.Contains(host, "://") {
		host = "http://" + host
	} else if scheme, _, _ := strings.Cut(host, ":"); scheme == "http" {
		port = "80"
	} else if scheme == "https" {
		port = "443"
	}
	u, err := url.Parse(host)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Opaque != "" {
		return "", false
	}
	name := u.Hostname()
	if ip := net.ParseIP(name); name == "" || ip != nil && ip.IsUnspecified() {
		name = ollamaAddress
	}
	if u.Port() != "" {
		port = u.Port()
	}
	u.Host = net.JoinHostPort(name, port)
	u.RawQuery, u.Fragment = "", ""
	return strings.TrimRight(u.String(), "/"), true
}

// Probe reports whether a GET of the address is answered with a success within half
// a second.
func Probe(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return false
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return false
	}
	// Only the status counts, and the connection is not used again.
	_ = response.Body.Close()
	return response.StatusCode < http.StatusMultipleChoices
}
