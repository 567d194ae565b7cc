package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/require"
)

const hidden = "hunter2-hunter2-hunter2"

func TestSecretsAreMaskedHoweverTheyArePrinted(t *testing.T) {
	t.Parallel()
	p := NewProvider(TypeOpenAI)
	p.APIKey, p.BaseURL = hidden, "https://u:"+hidden+"@host/v1"
	q := Queue{Password: hidden, Token: hidden, URL: "nats://" + hidden + "@a:4222, nats://u:" + hidden + "@b:4222"}
	values := []any{Secret(hidden), URL("postgres://u:" + hidden + "@h/db"), p, &p, q, StaticKey{Key: hidden}, Admin{Token: hidden}, []Secret{hidden}, map[string]Secret{"k": hidden}}
	for _, value := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%10s", "%T %v"} {
			text := fmt.Sprintf(verb, value)
			require.NotContains(t, text, "hunter2", verb)
			require.NotContains(t, strings.ToLower(text), fmt.Sprintf("%x", "hunter2"), verb)
		}
		text, err := json.Marshal(value)
		require.NoError(t, err)
		require.NotContains(t, string(text), "hunter2")
		text, err = yaml.Marshal(value)
		require.NoError(t, err)
		require.NotContains(t, string(text), "hunter2")
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", value)
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", value)
		require.NotContains(t, log.String(), "hunter2")
	}
	require.Equal(t, hidden, Secret(hidden).Reveal())
	require.Equal(t, `"xxxxx"`, Secret(hidden).GoString())
	require.Equal(t, `"http://xxxxx@h"`, URL("http://"+hidden+"@h").GoString())
	require.Empty(t, Secret("").String(), "an unset secret can be told from a set one")
	require.Equal(t, `"xxxxx"`, fmt.Sprintf("%q", Secret(hidden)))
}

func TestURLMasking(t *testing.T) {
	t.Parallel()
	cases := []struct{ in, want string }{
		{"", ""},
		{"https://api.openai.com/v1", "https://api.openai.com/v1"},
		{"https://u:p@h/v1", "https://u:xxxxx@h/v1"},
		{"https://token@h/v1", "https://xxxxx@h/v1"},
		{"nats://token@h:4222", "nats://xxxxx@h:4222"},
		{"nats://u:p@a:4222,nats://b:4222", "nats://u:xxxxx@a:4222,nats://b:4222"},
		{"nats://u:p,q@a:4222", "nats://u:xxxxx@a:4222"},
		{"postgres://u@h/db", "postgres://u@h/db"},
		{"postgres://u:p@h1,h2/db?sslmode=require", "postgres://u:xxxxx@h1,h2/db?sslmode=require"},
		{"postgres://h/db?user=u&password=p", "postgres://h/db?password=xxxxx&user=xxxxx"},
		{"host=h password=p", "xxxxx"},
		{"postgres://u:p%zz@h/db", "xxxxx"},
		{"mailto:a@b", "xxxxx"},
		{"https://h/#frag", "https://h/"},
	}
	for _, c := range cases {
		require.Equal(t, c.want, URL(c.in).String(), c.in)
	}
}

func TestShow(t *testing.T) {
	t.Parallel()
	loaded, err := read(`
server: {timeout: 1h}
queue: {url: "nats://u:`+hidden+`@h:4222", user: u, password: "`+hidden+`", token: "`+hidden+`"}
store: {url: "postgres://u:`+hidden+`@h/db"}
auth: {keys: [{name: a, key: "`+hidden+`", expires_at: 2030-01-31T00:00:00Z}]}
providers:
  b: {type: sim}
  a: {type: openai, base_url: "https://h/v1?key=`+hidden+`", api_key: "`+hidden+`", models: ["*"]}
`, "SLUICE_SERVER_KEEPALIVE=7s")
	require.NoError(t, err)
	text, err := Show(loaded.Config)
	require.NoError(t, err)
	shown := string(text)
	require.NotContains(t, shown, "hunter2")
	for _, want := range []string{
		"timeout: 1h\n", "keepalive: 7s\n", "max_body_bytes: 33554432\n", `url: "nats://u:xxxxx@h:4222"`, "password: xxxxx\n",
		`url: "postgres://u:xxxxx@h/db"`, "api_key: xxxxx\n", `base_url: "https://h/v1?key=xxxxx"`, "tokens_per_second: 50", "2030-01-31T00:00:00Z",
	} {
		require.Contains(t, shown, want)
	}
	require.Less(t, strings.Index(shown, "\nserver:"), strings.Index(shown, "\nqueue:"))
	require.Less(t, strings.Index(shown, "\n  a:"), strings.Index(shown, "\n  b:"))
}

// What Show prints is a file that Load reads to the same settings.
func TestShowIsReadBack(t *testing.T) {
	t.Parallel()
	c := Default()
	c.Server.Timeout = 90 * time.Minute
	p := NewProvider(TypeOpenAI)
	p.BaseURL = "http://h/v1"
	p.Models = []string{
		"*", "gpt-*", "- a", "a: b", "#x", "x #y", "null", "~", "123", "1e3", "0x1", ".5",
		"true", "yes", "a\nb", "a\n", "'", `"`, "${A}", "$${A}", "@a", "`", "!x", "&x",
		"{", "}", "a,b", " a ", "\t", "<<", "é", "2030-01-31T00:00:00Z", "5m", "%", "---", "|",
		">", "a\\\\b", "?",
	}
	c.Providers = map[string]Provider{"p": p, "123": NewProvider(TypeSim), "true": NewProvider(TypeSim), "null": NewProvider(TypeSim)}
	text, err := Show(&c)
	require.NoError(t, err)
	loaded, err := read(string(text))
	require.NoError(t, err, string(text))
	require.Equal(t, p, loaded.Config.Providers["p"])
	require.Equal(t, c.Server, loaded.Config.Server)
	require.Equal(t, c.Queue, loaded.Config.Queue)
	require.Len(t, loaded.Config.Providers, 4)
}
