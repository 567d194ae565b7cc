package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"sluice/internal/inference"
	"sluice/store"
	"sluice/store/sqlite"
)

func TestDisorder(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		numbers []int // in the order in which they began, 10 ms apart
		want    disorder
	}{
		"nothing":           {nil, disorder{}},
		"by age":            {[]int{0, 1, 2, 5, 9}, disorder{}},
		"neighbours":        {[]int{1, 0, 3, 2}, disorder{passed: 1, late: 10 * time.Millisecond}},
		"one passed by all": {[]int{1, 2, 3, 0}, disorder{passed: 3, late: 30 * time.Millisecond}},
		"one before all":    {[]int{3, 0, 1, 2}, disorder{passed: 1, late: 30 * time.Millisecond}},
		"the youngest first": {
			[]int{4, 3, 2, 1, 0}, disorder{passed: 4, late: 40 * time.Millisecond},
		},
		"late from the first younger one, whoever is older still": {
			[]int{0, 5, 9, 6, 4}, disorder{passed: 3, late: 30 * time.Millisecond},
		},
		"a second time counts for no more than that": {
			[]int{0, 1, 2, 3, 0, 1}, disorder{repeats: 2},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var all []began
			for i, n := range c.numbers {
				all = append(all, began{Number: n, At: time.Duration(i) * 10 * time.Millisecond})
			}
			slices.Reverse(all) // the log's own order is of no account
			require.Equal(t, c.want, disorderOf(all))
		})
	}
}

func TestAgeIsCountedFromTheIngress(t *testing.T) {
	t.Parallel()
	noon := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	accepted := map[int]time.Time{7: noon, 3: noon.Add(time.Second), 5: noon.Add(time.Minute), 4: noon.Add(time.Minute)}
	all := []began{{Number: 3, At: 1}, {Number: 9, At: 2}, {Number: 7, At: 3}, {Number: 5, At: 4}, {Number: 4, At: 5}}
	require.Equal(t, []began{{Number: 1, At: 1}, {Number: 0, At: 3}, {Number: 3, At: 4}, {Number: 2, At: 5}}, byAge(all, accepted))
	require.Empty(t, byAge(all, nil))
}

// TestAcceptedSince has more rows than a page of the ledger, and some of them come late.
func TestAcceptedSince(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sluice.db")
	db, err := sqlite.Open(t.Context(), path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, db.Migrate(t.Context()))
	start := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	row := func(n int, at time.Time) inference.Record {
		id := fmt.Sprintf("bench-%d", firstNumber+n)
		return inference.Record{JobID: id + at.String(), RequestID: id, CreatedAt: at}
	}
	const rows = store.MaxPage + 5
	var batch []inference.Record
	for n := range rows - 6 {
		batch = append(batch, row(n, start.Add(time.Duration(n)*time.Millisecond)))
	}
	batch = append(batch, row(1, start.Add(-time.Second)))
	_, err = db.AppendUsage(t.Context(), batch)
	require.NoError(t, err)
	var late errgroup.Group
	late.Go(func() error {
		var rest []inference.Record
		for n := rows - 6; n < rows; n++ {
			rest = append(rest, row(n, start.Add(time.Duration(n)*time.Millisecond)))
		}
		_, err := db.AppendUsage(t.Context(), rest)
		return err
	})
	accepted, err := acceptedSince(t.Context(), path, start, rows)
	require.NoError(t, errors.Join(err, late.Wait()))
	require.Len(t, accepted, rows)
	require.Equal(t, start.Add(time.Millisecond), accepted[1], "and not that of the load before")
	require.Equal(t, start.Add((rows-1)*time.Millisecond), accepted[rows-1])
}

func TestTheFleetIsWhatItsScenarioSays(t *testing.T) {
	t.Parallel()
	require.InDelta(t, 25, capacity([]fleetMember{{slots: 2, service: 100 * time.Millisecond}, {slots: 1, service: 200 * time.Millisecond}}), 1e-9)
	members := fleetMembers()
	quarter := fleetLoad * capacity(members) / float64(len(members))
	slowest := slices.MinFunc(members, func(a, b fleetMember) int { return int(capacity([]fleetMember{a}) - capacity([]fleetMember{b})) })
	require.Greater(t, quarter, capacity([]fleetMember{slowest}), "dealt out in turn it is too much for one of them")
	most := burstFactor * capacity(members) * fullPlan().fleetBurst.Seconds()
	require.Less(t, 1.1*most, float64(maxConnections), "every request of the burst has a connection")
	require.Less(t, 1.1*most, float64(fleetQueueLimit))
	require.Less(t, burstFactor*fullPlan().fleetBurst, burstPatience, "and its client waits until the fleet is done")
	for _, a := range aims() {
		if a.metric == "burst_passed" {
			require.InDelta(t, 2*slotsOf(members), a.limit, 0)
		}
	}
}

func TestWorkFollowsFromTheNumber(t *testing.T) {
	t.Parallel()
	m := fleetMember{slots: 1, service: 100 * time.Millisecond}
	var sum time.Duration
	const n = 20_000
	for i := range n {
		took := m.takes(i)
		require.Equal(t, took, m.takes(i))
		require.GreaterOrEqual(t, took, m.service/2)
		sum += took
	}
	require.InDelta(t, milliseconds(m.service), milliseconds(sum/n), 2)
	require.Equal(t, 2*m.takes(7), fleetMember{service: 2 * m.service}.takes(7), "as heavy wherever it runs")
}

func TestRequestsAreNumbered(t *testing.T) {
	t.Parallel()
	request := renderRequest(loadSpec{Address: "x", Numbered: true})
	for _, n := range []int{0, 1, 123_456, maxNumbers - 1} {
		numbered := withNumber(request, numberMark, n)
		require.Len(t, numbered, len(request))
		read, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(numbered)))
		require.NoError(t, err)
		got, ok := requestNumber(read.Header.Get("X-Request-Id"))
		require.True(t, ok)
		require.Equal(t, n, got)
	}
	require.Equal(t, renderRequest(loadSpec{Address: "x", Numbered: true}), request, "the one that they are made from stays")
	for _, id := range []string{"", "1000000", "bench-", "bench-12", "bench-1000000x", "bench-99999999999999999999"} {
		_, ok := requestNumber(id)
		require.False(t, ok, id)
	}
}

func TestOnlySomeSystemsServeAFleet(t *testing.T) {
	t.Parallel()
	p := fullPlan()
	var systems []string
	for _, s := range allSystems() {
		if p.measures(scenarioFleet, s, 0) {
			systems = append(systems, s)
		}
		require.False(t, p.measures(scenarioFleet, s, p.overloadRounds))
		require.True(t, p.measures(scenarioCalls, s, p.overloadRounds))
		require.Equal(t, s != systemDirect && s != systemGoverned && s != systemCached, p.measures(scenarioOverload, s, 0))
		require.Equal(t, s == systemCached, p.measures(scenarioCache, s, 0))
	}
	require.Equal(t, []string{systemFloor, systemExternal}, systems)
}

func TestAnAimMayBeAnotherSystems(t *testing.T) {
	t.Parallel()
	all := map[string]figures{
		systemFloor:    {"fleet_p99": 1000},
		systemSluice:   {"burst_lost": 7},
		systemExternal: {"fleet_p99": 501, "burst_lost": 0, "burst_passed": 41, "stream_memory": 1},
	}
	verdicts := map[string]bool{}
	for _, r := range judge(all) {
		verdicts[r.Aim] = r.Met
	}
	require.Equal(t, map[string]bool{
		"fleet at 90% load: p99 at most half of round robin's":                  false,
		"fleet under a burst: every request answered":                           true,
		"fleet under a burst: passed by two younger ones for each slot at most": false,
	}, verdicts)
}

// startMember serves one member of a fleet for the test.
func startMember(t *testing.T, m fleetMember) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serveFleet(ctx, listener, m, &fleetLog{start: time.Now()}) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return listener.Addr().String()
}

func TestAMemberWorksOnAsManyAsItHasSlots(t *testing.T) {
	t.Parallel()
	address := startMember(t, fleetMember{slots: 2, service: 100 * time.Millisecond})
	result, _ := runSpec(t, loadSpec{
		Mode: "open", Address: address, Rate: 25, Even: true, Connections: 8, Numbered: true, // so far apart that they arrive in their order
		Duration: 320 * time.Millisecond, Patience: 10 * time.Second,
	})
	require.Empty(t, result.Failures)
	require.EqualValues(t, 8, result.Latency.Count)

	all, err := takeBegan(t.Context(), address)
	require.NoError(t, err)
	require.Len(t, all, 8)
	slices.SortFunc(all, func(a, b began) int { return int(a.At - b.At) })
	for i, b := range all[2:] {
		require.GreaterOrEqual(t, b.At-all[i].At, 50*time.Millisecond, "no third one beside the two before it")
	}
	numbers := make([]int, len(all))
	for i, b := range all {
		numbers[i] = b.Number
	}
	slices.Sort(numbers)
	require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7}, numbers)
	require.LessOrEqual(t, disorderOf(all).passed, 2)

	again, err := takeBegan(t.Context(), address)
	require.NoError(t, err)
	require.Empty(t, again, "each is told once")
}

func TestTheProxyDealsOutInTurn(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var served []string
	var targets []string
	for _, name := range []string{"a", "b", "c"} {
		targets = append(targets, serve(t, func(http.ResponseWriter, *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			served = append(served, name)
		}))
	}
	ctx, cancel := context.WithCancel(t.Context())
	read, write := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- runProxy(ctx, write, targets, 0) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	line := make([]byte, 64)
	n, err := read.Read(line)
	require.NoError(t, err)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	for range 6 {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+strings.TrimSpace(string(line[:n]))+"/", nil)
		require.NoError(t, err)
		response, err := client.Do(request)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
	}
	require.Equal(t, []string{"a", "b", "c", "a", "b", "c"}, served)
}
