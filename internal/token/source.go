package token

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
)

// How keys are read.
const (
	fetchTimeout = 10 * time.Second
	maxRedirects = 3
	fetchHeaders = 64 << 10

	// apart is how long after a token whose key is not known has made us read the keys the
	// next one may. Anybody can send such tokens; the issuer must not feel it.
	apart = 5 * time.Second

	// retryAfter is when keys that could not be read are tried again, if that is sooner
	// than they would be read anyway.
	retryAfter = 15 * time.Second
)

// unavailable is what a client reads whose token may be good.
const unavailable = "The token cannot be checked at the moment: its issuer's keys cannot be read."

// source is the published keys of an issuer. The last that could be read stay in use
// while the issuer is away.
type source struct {
	url     string
	client  *http.Client
	metrics *Metrics
	log     *slog.Logger
	asking  *askings

	keys  atomic.Pointer[keySet] // nil: none were read yet
	reads singleflight.Group

	mu      sync.Mutex
	refresh time.Duration
	begun   time.Time // the last reading
	asked   time.Time // the last that a token made us do
	due     time.Time // the next
	failing bool
}

// every changes how often the keys are read.
func (s *source) every(refresh time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh = refresh
	if next := s.begun.Add(refresh); !s.begun.IsZero() && next.Before(s.due) {
		s.due = next
	}
}

// dueIn returns how long it is until the keys are to be read again.
func (s *source) dueIn(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.due.Sub(now)
}

// find returns the keys that a token may be signed with. An id that is not known makes
// the keys be read at once, unless they were just now.
func (s *source) find(ctx context.Context, id, alg string) (chosen []publicKey, of *keySet, err error) {
	ks := s.keys.Load()
	if ks != nil {
		chosen, named := ks.choose(id, alg)
		if named {
			return chosen, ks, nil
		}
	}
	var failed error
	var named bool
	for range 2 { // the reading that was under way may have begun before the key was there
		failed = s.readSoon(ctx)
		if ks = s.keys.Load(); ks == nil {
			return nil, nil, &refusal{reason: reasonUnavailable, message: unavailable, err: failed}
		}
		if chosen, named = ks.choose(id, alg); named || failed != nil {
			break // an issuer that is away would only make the caller wait once more
		}
	}
	if !named && failed != nil {
		return nil, nil, &refusal{reason: reasonUnavailable, message: unavailable, err: failed}
	}
	return chosen, ks, nil
}

// findLater returns the keys that fit a token without a key id, if there are others than
// those that it was found not to be signed with.
func (s *source) findLater(ctx context.Context, than *keySet, alg string) (chosen []publicKey, of *keySet, err error) {
	if s.keys.Load() == than {
		if err := s.readSoon(ctx); err != nil {
			return nil, nil, &refusal{reason: reasonUnavailable, message: unavailable, err: err}
		}
	}
	of = s.keys.Load()
	chosen, _ = of.choose("", alg)
	return chosen, of, nil
}

// readSoon has the keys read, or waits for who is reading them, unless that was tried just
// now. It waits no longer than ctx, while the reading goes on: others wait for it too.
func (s *source) readSoon(ctx context.Context) error {
	result := s.reads.DoChan("", func() (any, error) {
		s.mu.Lock()
		failing := s.failing
		tooSoon := within(s.asked, apart) || failing && within(s.begun, apart)
		if !tooSoon {
			s.asked = time.Now()
		}
		s.mu.Unlock()
		switch {
		case tooSoon && failing:
			return nil, errors.New("the issuer's keys could not be read a moment ago")
		case tooSoon:
			return nil, nil
		}
		return nil, s.asking.read(ctx, s)
	})
	select {
	case r := <-result:
		return r.Err
	case <-ctx.Done():
		return fmt.Errorf("wait for keys: %w", ctx.Err())
	}
}

// within reports whether at is no longer ago than d.
func within(at time.Time, d time.Duration) bool { return !at.IsZero() && time.Since(at) < d }

// readNow reads the keys because it is time to.
func (s *source) readNow(ctx context.Context) {
	_, _, _ = s.reads.Do("", func() (any, error) { return nil, s.read(ctx) })
}

// read replaces the keys by those that the issuer has now.
func (s *source) read(ctx context.Context) error {
	s.mu.Lock()
	s.begun = time.Now()
	s.due = s.begun.Add(jittered(s.refresh))
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	ks, err := s.fetch(ctx)
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return err // we are stopping, and it says nothing of the issuer
	}
	s.metrics.refreshed(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.failing
	if s.failing = err != nil; s.failing {
		s.due = time.Now().Add(jittered(min(s.refresh, retryAfter)))
		if !was {
			s.log.Warn("keys of the token issuer are not read; the last ones stay in use", "host", hostOf(s.url), "error", err)
		}
		return err
	}
	if was {
		s.log.Info("keys of the token issuer are read again", "host", hostOf(s.url))
	}
	s.keys.Store(ks)
	return nil
}

func (s *source) fetch(ctx context.Context) (*keySet, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, errors.New("address of the keys is malformed")
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // the address may hold a secret
		}
		return nil, fmt.Errorf("read keys: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read keys: status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxSetBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	if len(body) > maxSetBytes {
		return nil, fmt.Errorf("read keys: more than %d bytes", maxSetBytes)
	}
	return parseKeySet(body)
}

// jittered spreads the readings of many ingresses.
func jittered(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/10+1))
}

// newClient returns who reads keys. A connection is not kept for the minutes between two
// readings.
func newClient(base http.RoundTripper) *http.Client {
	if base == nil {
		base = &http.Transport{
			Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSHandshakeTimeout: fetchTimeout,
			ResponseHeaderTimeout: fetchTimeout, MaxResponseHeaderBytes: fetchHeaders,
		}
	}
	return &http.Client{Transport: base, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		switch {
		case len(via) > maxRedirects:
			return fmt.Errorf("more than %d redirects", maxRedirects)
		case !ValidKeysURL(req.URL.String()), via[0].URL.Scheme == "https" && req.URL.Scheme != "https":
			return errors.New("a redirect leads away from https")
		}
		return nil
	}}
}

// ValidKeysURL reports whether keys may be read from the address: over https, or over http
// from this very machine.
func ValidKeysURL(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Opaque != "" {
		return false
	}
	switch strings.ToLower(u.Scheme) {
	case "https":
		return true
	case "http":
		ip := net.ParseIP(u.Hostname())
		return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	}
	return false
}

func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Host
}
