package webhook

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// soon is how long a test waits for what must happen; nothing takes nearly as long.
const soon = 20 * time.Second

// receiver is a server on loopback.
func receiver(t *testing.T, handle http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(handle)
	t.Cleanup(s.Close)
	return s
}

// send makes one attempt that may go anywhere.
func send(t *testing.T, url string) Result {
	t.Helper()
	return sendWith(t, SenderOptions{Timeout: soon, AllowPrivate: true}, url)
}

func sendWith(t *testing.T, o SenderOptions, url string) Result {
	t.Helper()
	body, err := Body("evt_1", JobCompleted, "job_1", time.Now())
	require.NoError(t, err)
	return NewSender(o).Send(t.Context(), Message{URL: url, EventID: "evt_1", Body: body, Secrets: []Secret{NewSecret()}})
}

func TestAnAttemptIsSigned(t *testing.T) {
	t.Parallel()
	secret := NewSecret()
	seen := make(chan error, 1)
	up := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		for name, verify := range verifiers {
			if err == nil && verify(secret, body, r.Header) != nil {
				err = fmt.Errorf("%s does not take it", name)
			}
		}
		if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" || r.URL.RequestURI() != "/in?token=t" {
			err = fmt.Errorf("%s %s", r.Method, r.URL)
		}
		seen <- err
		w.WriteHeader(http.StatusAccepted)
	})
	body, err := Body("evt_1", JobCompleted, "job_1", time.Now().Add(-time.Hour))
	require.NoError(t, err)
	before := time.Now()
	r := NewSender(SenderOptions{Timeout: soon, AllowPrivate: true}).Send(t.Context(),
		Message{URL: up.URL + "/in?token=t", EventID: "evt_1", Body: body, Secrets: []Secret{secret}})
	require.NoError(t, <-seen)
	require.True(t, r.Delivered())
	require.Equal(t, http.StatusAccepted, r.Status)
	require.Positive(t, r.Took)
	require.False(t, r.At.Before(before))
}

func TestOnly2xxIsSuccess(t *testing.T) {
	t.Parallel()
	for _, status := range []int{200, 201, 204, 226, 299, 300, 301, 304, 307, 400, 404, 410, 429, 500, 503, 599} {
		up := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "90")
			w.WriteHeader(status)
		})
		r := send(t, up.URL)
		require.Equal(t, status, r.Status)
		require.Empty(t, r.Failure)
		require.Equal(t, status < 300, r.Delivered(), status)
		require.Equal(t, status == 410, r.Gone(), status)
		if r.Delivered() {
			require.Zero(t, r.RetryAfter)
			continue
		}
		require.Equal(t, 90*time.Second, r.RetryAfter)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	var called atomic.Int64
	target := receiver(t, func(http.ResponseWriter, *http.Request) { called.Add(1) })
	for _, location := range []string{target.URL, "/again", "http://169.254.169.254/latest", ":not a url", ""} {
		for _, status := range []int{301, 302, 303, 307, 308} {
			up := receiver(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/again" {
					called.Add(1)
				}
				w.Header().Set("Location", location)
				w.WriteHeader(status)
			})
			r := send(t, up.URL)
			require.Equal(t, status, r.Status)
			require.False(t, r.Delivered())
		}
	}
	require.Zero(t, called.Load())
}

func TestAnAttemptIsBounded(t *testing.T) {
	t.Parallel()
	brief := SenderOptions{Timeout: 100 * time.Millisecond, AllowPrivate: true}

	silent := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // the server looks for the client's end behind it
		<-r.Context().Done()
	})
	r := sendWith(t, brief, silent.URL)
	require.Equal(t, FailedTimeout, r.Failure)
	require.Less(t, r.Took, soon)

	slow := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	r = sendWith(t, brief, slow.URL)
	require.True(t, r.Delivered(), "the status alone counts")
	require.Less(t, r.Took, soon)

	var sent atomic.Int64
	endless := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
		for {
			n, err := w.Write(make([]byte, 32<<10))
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	r = send(t, endless.URL)
	require.True(t, r.Delivered())
	require.Less(t, r.Took, soon/2, "no more is read than a little")

	heads := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Long", strings.Repeat("x", 2*maxHeaderBytes))
	})
	require.Equal(t, FailedNetwork, send(t, heads.URL).Failure)
}

func TestWhyThereWasNoAnswer(t *testing.T) {
	t.Parallel()
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	secure.Config.ErrorLog = nil
	t.Cleanup(secure.Close)
	cut := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_ = conn.Close()
		}
	})
	gone := receiver(t, nil)
	gone.Close()
	names := scriptNames(t, nil)
	open := SenderOptions{Timeout: soon, AllowPrivate: true, Resolver: names.resolver}
	for url, want := range map[string]string{
		secure.URL: FailedTLS, cut.URL: FailedNetwork, gone.URL: FailedRefused, "http://nothing.test/": FailedName, "not a url": FailedURL,
	} {
		r := sendWith(t, open, url)
		require.Equal(t, want, r.Failure, url)
		require.Zero(t, r.Status)
		require.False(t, r.Delivered())
	}
	r := NewSender(open).Send(t.Context(), Message{URL: cut.URL, EventID: "evt_1"})
	require.Equal(t, FailedSecret, r.Failure)
}

// A stored address that was allowed once is judged by what is allowed now.
func TestAddressesAreJudgedAtEachAttempt(t *testing.T) {
	t.Parallel()
	var called atomic.Int64
	up := receiver(t, func(http.ResponseWriter, *http.Request) { called.Add(1) })
	strict := SenderOptions{Timeout: soon}
	require.Equal(t, FailedURL, sendWith(t, strict, up.URL).Failure)
	require.Equal(t, FailedForbidden, sendWith(t, strict, strings.Replace(up.URL, "http", "https", 1)).Failure)
	require.Zero(t, called.Load())
	require.Nil(t, NewSender(strict).transport.Proxy, "a proxy would be dialled in the receiver's place")
}

// Names that resolve to forbidden addresses reach nothing, whatever they resolved to
// before and in whatever form the address comes.
func TestNamesThatResolveToForbiddenAddresses(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var accepted atomic.Int64
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			_ = conn.Close()
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		serving.Wait()
	})
	_, port, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)

	for _, answers := range [][]string{
		{"127.0.0.1"},
		{"::1"},
		{"::ffff:127.0.0.1"},
		{"127.0.0.1", "::1"},
		{"10.0.0.1", "127.0.0.1"},
		{"0.0.0.0"},
		{"::"},
		{"169.254.169.254"},
		{"64:ff9b::7f00:1"},
		{"2002:7f00:1::1"},
		{"fd00:ec2::254"},
		{"100.100.100.200"},
		{"192.168.1.1", "fe80::1"},
		{"::127.0.0.1"},
	} {
		names := scriptNames(t, answers)
		r := sendWith(t, SenderOptions{Timeout: soon, Resolver: names.resolver}, "https://hooks.test:"+port+"/")
		require.Equal(t, FailedForbidden, r.Failure, "%v", answers)
		require.Zero(t, r.Status)
	}
	require.Zero(t, accepted.Load(), "nothing was dialled")

	// The same sender asks again for each attempt, and judges what it hears then.
	names := scriptNames(t, []string{"10.0.0.1"})
	sender := NewSender(SenderOptions{Timeout: soon, Resolver: names.resolver})
	m := Message{URL: "https://hooks.test:" + port + "/", EventID: "evt_1", Secrets: []Secret{NewSecret()}}
	require.Equal(t, FailedForbidden, sender.Send(t.Context(), m).Failure)
	names.set([]string{"127.0.0.1"})
	asked := names.asked.Load()
	require.Equal(t, FailedForbidden, sender.Send(t.Context(), m).Failure)
	require.Greater(t, names.asked.Load(), asked)
	require.Zero(t, accepted.Load())

	// What is allowed is reached by the same name: the script is no dead end.
	r := sendWith(t, SenderOptions{Timeout: soon, AllowPrivate: true, Resolver: names.resolver}, "https://hooks.test:"+port+"/")
	require.NotEqual(t, FailedForbidden, r.Failure)
	require.Positive(t, accepted.Load())
}

func TestOnlyPublicAddressesAreDialled(t *testing.T) {
	t.Parallel()
	require.NoError(t, checkDial("tcp4", "8.8.8.8:443"))
	require.NoError(t, checkDial("tcp6", "[2606:4700::1111]:8443"))
	for _, c := range [][2]string{
		{"tcp4", "127.0.0.1:443"}, {"tcp6", "[::ffff:7f00:1]:443"}, {"tcp6", "[fe80::1%eth0]:443"}, {"udp4", "8.8.8.8:443"}, {"unix", "/tmp/x"}, {"tcp4", "8.8.8.8"}, {"tcp4", "example.com:443"}, {"tcp4", ""},
	} {
		require.ErrorIs(t, checkDial(c[0], c[1]), ErrForbidden, c)
	}
}

// script answers every question for a name's addresses; none: there is no such name.
type script struct {
	resolver *net.Resolver
	asked    atomic.Int64

	mu      sync.Mutex
	answers []netip.Addr
}

func (s *script) set(answers []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = nil
	for _, text := range answers {
		s.answers = append(s.answers, netip.MustParseAddr(text))
	}
}

// scriptNames starts a name server that ends with the test.
func scriptNames(t *testing.T, answers []string) *script {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	s := &script{}
	s.set(answers)
	s.resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp4", conn.LocalAddr().String())
	}}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(s.answer(buf[:n]), from)
		}
	})
	t.Cleanup(func() {
		_ = conn.Close()
		serving.Wait()
	})
	return s
}

// answer is the reply to a query with one question (RFC 1035, 4.1).
func (s *script) answer(query []byte) []byte {
	s.asked.Add(1)
	const header, typeA, typeAAAA = 12, 1, 28
	end := header
	for query[end] != 0 {
		end += int(query[end]) + 1
	}
	question := query[header : end+5]
	kind := binary.BigEndian.Uint16(query[end+1:])
	s.mu.Lock()
	defer s.mu.Unlock()
	reply := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, question...)
	if len(s.answers) == 0 {
		reply[3] |= 3 // there is no such name
	}
	for _, a := range s.answers {
		data := a.AsSlice()
		if kind == typeA && !a.Is4() || kind == typeAAAA && a.Is4() || kind != typeA && kind != typeAAAA {
			continue
		}
		reply[7]++
		reply = append(reply, 0xc0, header, byte(kind>>8), byte(kind), 0, 1, 0, 0, 0, 0, 0, byte(len(data)))
		reply = append(reply, data...)
	}
	return reply
}
