package e2e_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/require"
)

const hookToken = "e2e-admin-token-0123456789"

// operatorsAddress is where the process serves its operators, once it does.
func operatorsAddress(p *process) (address string) {
	p.t.Helper()
	p.eventually("serve operators", func() bool {
		for line := range strings.Lines(p.stderr.String()) {
			var entry struct{ Msg, Address string }
			if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "serving operators" {
				address = entry.Address
				return true
			}
		}
		return false
	})
	return address
}

// inbox is a tenant's server: it keeps what it is sent, and answers as it is told to.
type inbox struct {
	mu     sync.Mutex
	bodies [][]byte
	heads  []http.Header
	hold   chan struct{} // not nil: answers wait for it
}

func (b *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	b.mu.Lock()
	b.bodies, b.heads = append(b.bodies, body), append(b.heads, r.Header)
	hold := b.hold
	b.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
	}
}

func (b *inbox) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.bodies)
}

// requireSigned has OpenAI's client verify the newest message, and returns its id.
func (b *inbox) requireSigned(t *testing.T, secrets ...string) string {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	body, head := b.bodies[len(b.bodies)-1], b.heads[len(b.heads)-1]
	for _, secret := range secrets {
		client := openai.NewClient(option.WithAPIKey("unused"), option.WithWebhookSecret(secret))
		event, err := client.Webhooks.Unwrap(body, head)
		require.NoError(t, err)
		require.Equal(t, "webhook.test", event.Type)
		require.Equal(t, head.Get("webhook-id"), event.ID)
	}
	return head.Get("webhook-id")
}

// An operator's whole way with a webhook, and a delivery that outlives kill -9.
func TestWebhooks(t *testing.T) {
	t.Parallel()
	box := &inbox{}
	server := httptest.NewServer(box)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	env := []string{
		"SLUICE_ADMIN_ADDRESS=127.0.0.1:0", "SLUICE_ADMIN_TOKEN=" + hookToken,
		"SLUICE_WEBHOOKS_ALLOW_PRIVATE_NETWORKS=true", "SLUICE_WEBHOOKS_TIMEOUT=1s",
	}
	p := serving(t, dir, env...)
	address := operatorsAddress(p)
	try := func(line string) (code int, stdout, stderr string) {
		return execute(t, command{
			env:  []string{"SLUICE_ADMIN_ADDRESS=" + address, "SLUICE_ADMIN_TOKEN=" + hookToken},
			args: append([]string{"webhooks"}, strings.Fields(line)...),
		})
	}
	do := func(line string) (stdout, stderr string) {
		code, stdout, stderr := try(line)
		require.Zero(t, code, "%s: %s", line, stderr)
		return stdout, stderr
	}
	stdout, stderr := do("create " + server.URL + "/in --tenant research --events job.completed")
	secret := strings.TrimSpace(stdout)
	require.Regexp(t, `^whsec_\S+$`, secret, "standard output holds the secret alone, to be piped")
	id := regexp.MustCompile(`whk_[a-z2-7]{24}`).FindString(stderr)
	require.NotEmpty(t, id, stderr)
	require.NotContains(t, stderr, secret)

	stdout, _ = do("test " + id)
	require.Contains(t, stdout, "was taken: status 200")
	event := box.requireSigned(t, secret)
	require.Contains(t, stdout, event)
	stdout, _ = do("rotate " + id)
	do("test " + id)
	box.requireSigned(t, strings.TrimSpace(stdout), secret)
	do("redeliver " + event + " " + id)
	require.Eventually(t, func() bool { return box.count() == 3 }, patience, pollEvery)
	require.Equal(t, event, box.requireSigned(t, secret))
	stdout, _ = do("log " + id)
	require.Regexp(t, event+` +webhook.test +`+id+` +`+id+` +delivered +2 `, stdout)
	stdout, _ = do("list --tenant research")
	require.Regexp(t, id+` +research +`+regexp.QuoteMeta(server.URL)+`/in +job.completed +active`, stdout)
	require.NotContains(t, stdout, "whsec_")
	stdout, _ = do("secret --tenant research")
	require.Regexp(t, `^whsec_\S+\n$`, stdout)

	// The process is killed while its receiver thinks: the next one delivers again what
	// nobody took down, under the same id.
	hold := make(chan struct{})
	box.mu.Lock()
	box.hold = hold
	box.mu.Unlock()
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		_, _, _ = try("test " + id) // its ingress is killed under it
	}()
	require.Eventually(t, func() bool { return box.count() == 4 }, patience, pollEvery)
	p.kill()
	<-asked
	lost := box.requireSigned(t, secret)
	box.mu.Lock()
	box.hold = nil
	box.mu.Unlock()
	close(hold)
	p = start(t, command{dir: dir, env: append([]string{anyPort}, env...), args: []string{"serve"}})
	address = operatorsAddress(p)
	require.Eventually(t, func() bool { return box.count() == 5 }, 2*patience, pollEvery)
	require.Equal(t, lost, box.requireSigned(t, secret))

	do("enable " + id)
	do("delete " + id)
	code, _, stderr := try("test " + id)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "no webhook with this id")
	require.NotContains(t, p.stdout.String()+p.stderr.String(), "whsec_")
}
