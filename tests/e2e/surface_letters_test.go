package e2e_test

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

// hooks goes the whole way of a webhook, also through the end that a receiver makes of it.
func (s *surface) hooks() {
	t := s.t
	t.Helper()
	url, status, received := s.receiver()
	try := func(line string) (stdout, stderr string) {
		code, stdout, stderr := s.try("webhooks " + line)
		require.Zero(t, code, "%s: %s", line, stderr)
		return stdout, stderr
	}
	secret, told := try("create " + url + "/in?token=of-the-receiver --tenant research --events job.completed,job.failed")
	id := regexp.MustCompile(`whk_\w+`).FindString(told)
	rotated, _ := try("rotate " + id + " --overlap 1h")
	own, _ := try("secret --tenant research")
	again, _ := try("secret --tenant research")
	require.Equal(t, own, again)
	changed, _ := try("secret --tenant research --rotate --overlap 1h")
	for _, shown := range []string{secret, rotated, own, changed} {
		require.Regexp(t, `^whsec_\S+\n$`, shown)
		s.secrets = append(s.secrets, strings.TrimSpace(shown))
	}
	require.NotEqual(t, secret, rotated)
	require.NotEqual(t, own, changed)
	require.Regexp(t, id+` +research +\S+ +job.completed,job.failed +active`, s.do("webhooks list --tenant research"))
	require.NotContains(t, s.do("webhooks list --tenant ops"), id)

	taken, _ := try("test " + id)
	event := regexp.MustCompile(`evt_\w+`).FindString(taken)
	require.Contains(t, taken, "was taken: status 200")
	try("redeliver " + event + " " + id)
	s.eventually("webhooks log "+id+" --state delivered --limit 5", "delivered  2 ")
	require.EqualValues(t, 2, received.Load())
	require.Contains(t, s.refused(1, "webhooks redeliver evt_none "+id), "no such event")

	status.Store(http.StatusGone)
	require.Contains(t, s.refused(1, "webhooks test "+id), "status 410")
	s.eventually("webhooks list", "(gone)")
	require.Contains(t, s.refused(1, "webhooks test "+id), "Enable it first")
	require.Regexp(t, id+` +failed +1 `, s.do("webhooks log --tenant research --state failed"))
	status.Store(http.StatusOK)
	require.Equal(t, "Webhook "+id+" is in force.\n", s.do("webhooks enable "+id))
	try("test " + id)
	require.Equal(t, "Webhook "+id+" is removed.\n", s.do("webhooks delete "+id))
	require.Contains(t, s.refused(1, "webhooks enable "+id), "no webhook with this id")
	require.NotContains(t, s.do("webhooks list"), id)
}

// files has the server's file changed, for good and for bad, and looked at.
func (s *surface) files() {
	t := s.t
	t.Helper()
	live := s.do("config show --live")
	require.Contains(t, live, "file: \""+s.config)
	require.Contains(t, live, "concurrency: 64")
	s.configure("rate_limit: {key: {requests_per_minute: 100000}}\nstate: nothing\n")
	require.Contains(t, s.refused(1, "config reload"), "nothing is reloaded:")
	at := administration{t: t, p: s.p, dir: s.dir} // the file alone, as the server reads it
	code, _, stderr := at.try("config validate --config " + s.config)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "state")
	require.NotContains(t, s.do("config show --live"), "requests_per_minute: 100000")
	s.configure("rate_limit: {key: {requests_per_minute: 100000}}\nqueue: {max_queued: 900}\n")
	require.Regexp(t, `^The configuration is reloaded \(\S+\)\.\nqueue.max_queued has changed and needs a restart\.\n$`, s.do("config reload"))
	live = s.do("config show --live")
	require.Contains(t, live, "requests_per_minute: 100000")
	require.Contains(t, live, `needs_restart: ["queue.max_queued"]`)
	for _, secret := range []string{surfaceToken, surfaceUpstream} {
		require.NotContains(t, live, secret)
		require.NotContains(t, at.do("config show --config "+s.config), secret)
	}
	require.Contains(t, at.do("config validate --config "+s.config), "valid")
	require.Contains(t, at.do("route explain --model kept --config "+s.config), "up/kept")
	var schema map[string]any
	s.decoded("config schema", &schema)
	require.Contains(t, schema, "properties")
	// The commands read the server's own file as well, with the address that it came to.
	require.Contains(t, s.do("keys list --config "+s.config), "app")
	s.look()
}

// look has an operator who may only look do so, and change nothing.
func (s *surface) look() {
	t := s.t
	t.Helper()
	viewer := s.administration
	viewer.env = []string{s.env[0], "SLUICE_ADMIN_TOKEN=" + surfaceViewer}
	for _, line := range []string{
		"keys list", "keys show app", "tenants list", "audit list", "usage", "providers list", "queues list", "dead-letters list", "cache show",
		"webhooks list", "webhooks log", "config show --live", "route explain --model plain --live",
	} {
		require.NotEmpty(t, viewer.do(line), line)
	}
	for _, line := range []string{
		"keys create mine", "keys revoke app", "tenants set research --disable", "providers pause up", "queues purge up --yes", "dead-letters drop --all --yes",
		"cache purge --all", "webhooks secret --tenant research", "config reload",
	} {
		code, _, stderr := viewer.try(line)
		require.Equal(t, 1, code, line)
		require.Contains(t, stderr, "may look", line)
	}
}

// letters makes dead letters: messages that a worker cannot read, and a job that a build
// which could not read it left behind. It sees to them all.
func (s *surface) letters(key string) {
	t := s.t
	t.Helper()
	s.do("providers pause up")
	accepted := s.chat(key, "plain", "later", "Prefer", "respond-async")
	require.Equal(t, http.StatusAccepted, accepted.status, accepted.body)
	job := strings.TrimPrefix(accepted.head.Get("Location"), "/v1/jobs/")
	s.eventually("providers list", "  0/1/0  ")
	s.stop()
	s.bury()
	s.serve()

	require.Regexp(t, `(?m)^dead_1 +\S+Z +job +up +background +"\w+" +\d+ +"header Sluice-Future: unknown value"$`, s.do("dead-letters list --provider up"))
	require.Equal(t, "dead_1 is sent again as job "+job+"\n", s.do("dead-letters requeue dead_1"))
	s.do("providers resume up")
	require.Eventually(t, func() bool { return s.job(key, job) == "completed" }, patience, 5*pollEvery)

	s.eventually("dead-letters list --reason JOB --json", `"dead_4"`)
	var letter struct {
		Kind, Provider, Reason, Unread, Body string
	}
	s.decoded("dead-letters show dead_3", &letter)
	require.Equal(t, []string{"job", "up"}, []string{letter.Kind, letter.Provider})
	require.NotEmpty(t, letter.Reason)
	require.NotEmpty(t, letter.Unread)
	require.Empty(t, letter.Body)
	s.decoded("dead-letters show dead_3 --body", &letter)
	require.Equal(t, "nobody can read this", letter.Body)
	require.Contains(t, s.refused(1, "dead-letters requeue dead_3"), "cannot be read as a job")
	code, stdout, _ := s.try("dead-letters requeue --all --provider up --limit 1")
	require.Equal(t, 1, code)
	require.Equal(t, 3, strings.Count(stdout, " stays: "), "each is passed by for the next one")
	require.NotContains(t, stdout, "There are more")
	s.refused(2, "dead-letters drop dead_3")
	require.Equal(t, "1 dead letter dropped.\n", s.do("dead-letters drop dead_3 --yes"))
	require.Contains(t, s.refused(1, "dead-letters show dead_3"), "no dead letter")
	require.Equal(t, "1 dead letter dropped.\nThere are more.\n", s.do("dead-letters drop --all --provider up --limit 1 --yes"))
	require.Equal(t, "1 dead letter dropped.\n", s.do("dead-letters drop --all --yes"))
	require.Equal(t, 1, strings.Count(s.do("dead-letters list"), "\n"))
}

// job is the state of a background job.
func (s *surface) job(key, id string) string {
	s.t.Helper()
	c := newClient(s.t, s.p.address(), key)
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, c.base+"/v1/jobs/"+id, nil)
	require.NoError(s.t, err)
	resp, err := c.do(req, nil)
	require.NoError(s.t, err)
	defer resp.Body.Close()
	var job struct{ Status string }
	require.NoError(s.t, json.NewDecoder(resp.Body).Decode(&job))
	return job.Status
}

// bury does to the stopped server's queue what another build would have done: the job in it
// becomes a dead letter, and three messages come that nobody can read.
func (s *surface) bury() {
	t := s.t
	t.Helper()
	const subject = "job.up.background"
	embedded, err := server.NewServer(&server.Options{
		ServerName: "sluice", DontListen: true, JetStream: true, StoreDir: filepath.Join(s.dir, "data", "nats"), NoSigs: true, NoSystemAccount: true, NoLog: true,
	})
	require.NoError(t, err)
	embedded.Start()
	defer func() {
		embedded.Shutdown()
		embedded.WaitForShutdown()
	}()
	require.True(t, embedded.ReadyForConnections(startPatience))
	nc, err := nats.Connect("", nats.InProcessServer(embedded))
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	name, err := js.StreamNameBySubject(t.Context(), subject)
	require.NoError(t, err)
	stream, err := js.Stream(t.Context(), name)
	require.NoError(t, err)
	job, err := stream.GetLastMsgForSubject(t.Context(), subject)
	require.NoError(t, err)
	require.NoError(t, stream.DeleteMsg(t.Context(), job.Sequence))
	letter := nats.NewMsg("dead.up")
	letter.Header, letter.Data = job.Header, job.Data
	letter.Header.Del("Nats-Msg-Id")
	letter.Header.Set("Sluice-Reason", "header Sluice-Future: unknown value")
	letter.Header.Set("Sluice-Subject", subject)
	_, err = js.PublishMsg(t.Context(), letter)
	require.NoError(t, err)
	for range 3 {
		_, err = js.Publish(t.Context(), subject, []byte("nobody can read this"))
		require.NoError(t, err)
	}
}
