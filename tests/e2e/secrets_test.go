package e2e_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
)

// What must never be seen where it does not belong.
const (
	secretUpstream = "sk-SECRETUPSTREAM0123456789"
	secretDatabase = "SECRETDATABASE"
	secretNATS     = "SECRETNATS"
	secretPrompt   = "PROMPTWORDS"
	secretAnswer   = "ANSWERWORDS"
	secretUser     = "sk-sluice-SECRETUSER0123456789"
)

// seen is everything that operators get to read of a run.
type seen struct {
	t     *testing.T
	texts map[string]string
}

func (s *seen) add(where, text string) { s.texts[where] += text }

func (s *seen) requireNone(secrets ...string) {
	s.t.Helper()
	for where, text := range s.texts {
		for _, secret := range secrets {
			require.NotContains(s.t, text, secret, "%s shows what it must not", where)
		}
	}
}

// leaky answers as a careless upstream does: its errors repeat what it was sent.
func leaky(call *testkit.Call) {
	said := prompt(call)
	careless := "invalid: " + said + " with " + call.Header.Get("Authorization")
	switch {
	case strings.Contains(said, "refused"):
		call.Fail(http.StatusUnauthorized, careless)
	case strings.Contains(said, "broken"):
		call.Fail(http.StatusInternalServerError, careless)
	case strings.Contains(said, "rejected"):
		call.Fail(http.StatusBadRequest, careless)
	case strings.Contains(said, "limited"):
		call.SetHeader("Retry-After", "3600")
		call.Fail(http.StatusTooManyRequests, careless)
	case strings.Contains(said, "garbage"):
		call.JSON(http.StatusOK, `{"choices": "`+secretAnswer+call.Header.Get("Authorization"))
	case strings.Contains(said, "cut"):
		if call.Streamed() {
			call.Delta(secretAnswer)
		}
		call.Cut()
	case strings.Contains(said, "odd-stream"):
		call.Chunk(`{"choices": "` + secretAnswer + call.Header.Get("Authorization"))
	case strings.Contains(said, "late"):
		call.Hang()
	default:
		call.Reply(secretAnswer, " ", "indeed")
	}
}

func TestNothingSecretIsShown(t *testing.T) {
	t.Parallel()
	nats := testkit.StartNATS(t)
	c := newCluster(t, clusterOptions{
		natsURL: withPassword(nats.URL(), "nats", secretNATS), logLevel: "debug", secret: secretUpstream,
		database: withPassword(testkit.Postgres(t), "postgres", secretDatabase),
	})
	c.upstream.Handle(leaky)
	in := c.ingress()
	w := c.worker(in, 1)
	s := &seen{t: t, texts: map[string]string{}}

	send := func(where, body string, key string, header http.Header) {
		resp, err := in.as(key).post(t.Context(), body, header)
		require.NoError(t, err, where)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err, where)
		if where != "" {
			require.NotEmpty(t, text)
			s.add("answer to "+where, string(text))
		}
	}
	for _, stream := range []bool{false, true} {
		send("", chatBody(clusterModel, stream, secretPrompt), clusterKey, nil)
		for _, kind := range []string{"refused", "garbage", "odd-stream"} {
			send(kind, chatBody(clusterModel, stream, secretPrompt+" "+kind), clusterKey, nil)
		}
		send("late", chatBody(clusterModel, stream, secretPrompt+" late"), clusterKey, http.Header{"X-Sluice-Timeout": {"500ms"}})
	}
	send("cut", chatBody(clusterModel, false, secretPrompt+" cut"), clusterKey, nil)
	send("a stranger", chatBody(clusterModel, false, secretPrompt), secretUser, nil)
	send("broken JSON", `{"model": "scripted", "messages": [{"content": "`+secretPrompt, clusterKey, nil)
	send("a wrong field", `{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "temperature": "`+secretPrompt+`"}`, clusterKey, nil)
	s.requireNone(secretPrompt, secretAnswer, secretUpstream, secretUser, clusterKey)

	begun := in.openStream(t, clusterModel, secretPrompt+" cut", nil)
	begun.until(secretAnswer)
	end := begun.rest()
	require.NotEmpty(t, end)
	s.add("the error in a stream", end[len(end)-1].data)

	// A provider's own word about what went wrong reaches the client who asked, though
	// never with the provider's key in it.
	for _, kind := range []string{"rejected", "broken", "limited"} { // after the last one the key is told to wait
		resp, err := in.post(t.Context(), chatBody(clusterModel, false, secretPrompt+" "+kind), nil)
		require.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.GreaterOrEqual(t, resp.StatusCode, 400, kind)
		require.NotContains(t, string(text), secretUpstream, kind)
	}
	// What cannot be reached is told of without its password.
	require.NoError(t, nats.Kill())
	in.eventually("notice", func() bool { return strings.Contains(in.stderr.String(), "disconnected from nats") })
	code, stdout, stderr := execute(t, command{
		env:  []string{"SLUICE_STORE_URL=postgres://me:" + secretDatabase + "@127.0.0.1:1/db"},
		args: []string{"keys", "list", "--config", c.file("ingress.yaml")},
	})
	require.Equal(t, 1, code)
	s.add("keys list without a database", stdout+stderr)

	metrics, err := in.http.Get(in.base + "/metrics")
	require.NoError(t, err)
	defer metrics.Body.Close()
	body, err := io.ReadAll(metrics.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), "sluice_requests_total", "there are metrics to look at")
	s.add("metrics", string(body))
	for name, p := range map[string]*process{"ingress": in.process, "worker": w} {
		p.kill()
		require.Contains(t, p.stderr.String(), `"level":"`, "%s logs", name)
		s.add(name+"'s output", p.stdout.String()+p.stderr.String())
	}
	require.Contains(t, in.stderr.String(), `"level":"DEBUG"`)
	s.requireNone(secretPrompt, secretAnswer, secretUpstream, secretUser, secretDatabase, secretNATS, clusterKey)
}
