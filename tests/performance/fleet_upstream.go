package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// fleetMember is one of several upstreams that serve the same model. It works on as
// many requests at once as it has slots, and further ones wait inside it, the oldest
// first, as they do in a server that batches.
type fleetMember struct {
	slots   int
	service time.Duration // of one request, on average
}

// fleetMembers are unequal as machines of different years are: the largest does
// somewhat more than twice what the smallest does.
func fleetMembers() []fleetMember {
	return []fleetMember{
		{slots: 8, service: 150 * time.Millisecond}, // 53.3 requests a second
		{slots: 6, service: 150 * time.Millisecond}, // 40
		{slots: 4, service: 125 * time.Millisecond}, // 32
		{slots: 2, service: 80 * time.Millisecond},  // 25
	}
}

// capacity is how many requests a second the members can do.
func capacity(members []fleetMember) float64 {
	sum := 0.0
	for _, m := range members {
		sum += float64(m.slots) / m.service.Seconds()
	}
	return sum
}

func slotsOf(members []fleetMember) int {
	sum := 0
	for _, m := range members {
		sum += m.slots
	}
	return sum
}

// takes is how long the member works on the request with this number: half of its
// service time is fixed and the other half differs from request to request. It
// follows from the number, so that a request is as heavy under every system.
func (m fleetMember) takes(number int) time.Duration {
	weight := rand.New(rand.NewPCG(uint64(number), 0)).ExpFloat64()
	return time.Duration((1 + weight) / 2 * float64(m.service))
}

// fleetLog is when requests began, at whichever member.
type fleetLog struct {
	start time.Time

	mu  sync.Mutex
	all []began
}

func (l *fleetLog) add(number int) {
	at := time.Since(l.start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, began{Number: number, At: at})
}

// take returns what was logged since the last call.
func (l *fleetLog) take() []began {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.all
	l.all = nil
	return all
}

const (
	beganPath    = "/began" // where the harness asks for the log
	maxFleetBody = 64 << 10
)

// serveFleet serves one member until ctx ends.
func serveFleet(ctx context.Context, listener net.Listener, m fleetMember, l *fleetLog) error {
	slots := semaphore.NewWeighted(int64(m.slots)) // whoever waits longest is next
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, io.LimitReader(r.Body, maxFleetBody))
		number, numbered := requestNumber(r.Header.Get(numberName))
		if err != nil || !numbered {
			http.Error(w, "no number", http.StatusBadRequest)
			return
		}
		if slots.Acquire(r.Context(), 1) != nil {
			return // the client went away
		}
		defer slots.Release(1)
		l.add(number)
		if !waitUntil(r.Context(), time.Now().Add(m.takes(number))) {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, plainAnswer()) // the client may have gone away
	})
	mux.HandleFunc("GET "+beganPath, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(l.take()) // the harness hears of a broken answer
	})
	server := &http.Server{Handler: mux, ErrorLog: log.New(io.Discard, "", 0)}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// takeBegan asks an upstream's process for what began since it was last asked.
func takeBegan(ctx context.Context, address string) ([]began, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+beganPath, nil)
	if err != nil {
		return nil, fmt.Errorf("ask for the order: %w", err)
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask for the order: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	var all []began
	if err := json.NewDecoder(response.Body).Decode(&all); err != nil {
		return nil, fmt.Errorf("read the order: %w", err)
	}
	return all, nil
}
