package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
)

// How much chaos there is. SLUICE_E2E_CHAOS_ROUNDS has more processes killed, in several
// batches one after another, and SLUICE_E2E_CHAOS_SEED repeats the choices of a run,
// which logs its seed. The checks are the same. SLUICE_E2E_DATABASE_OUTAGE makes the
// other outage longer, for instance 5m.
const (
	roundsVariable   = "SLUICE_E2E_CHAOS_ROUNDS"
	seedVariable     = "SLUICE_E2E_CHAOS_SEED"
	databaseVariable = "SLUICE_E2E_DATABASE_OUTAGE"

	chaosRounds    = 20 // of one batch
	chaosLines     = 5000
	databaseOutage = 30 * time.Second
)

// stallPatience is how long the next kill waits for the batch to come so far. It does not
// wait until what a killed ingress had leased is free again: that, too, is a moment.
const stallPatience = 3 * time.Second

// chaosPatience bounds how long a batch may stand still. A killed ingress takes its
// leases with it, which end two minutes later, and a killed worker its calls, which are
// given up for lost sooner.
const chaosPatience = 150 * time.Second

func numberFrom(t *testing.T, variable string, fallback uint64) uint64 {
	t.Helper()
	v := os.Getenv(variable)
	if v == "" {
		return fallback
	}
	n, err := strconv.ParseUint(v, 10, 64)
	require.NoError(t, err, variable)
	return n
}

// fleet is two of each role, any of which may be killed.
type fleet struct {
	*cluster
	doors   *doors
	workers [2]*process
}

func newFleet(t *testing.T, o clusterOptions) *fleet {
	t.Helper()
	o.concurrency, o.storage = 32, "file"
	f := &fleet{cluster: newCluster(t, o), doors: &doors{}}
	for i := range f.workers {
		f.startIngress(i)
		f.startWorker(i)
	}
	f.doors.at(0).eventually("know both workers", func() bool { return f.doors.at(0).workers() == len(f.workers) })
	return f
}

func (f *fleet) startIngress(i int) {
	f.t.Helper()
	p := start(f.t, command{
		env:  []string{"SLUICE_WEBHOOKS_ALLOW_PRIVATE_NETWORKS=true"},
		args: []string{"ingress", "--config", f.file("ingress.yaml")},
	})
	in := &ingress{process: p, client: newClient(f.t, p.address(), clusterKey)}
	in.eventually("become ready", func() bool {
		resp, err := in.http.Get(in.base + "/readyz")
		return err == nil && drop(resp) == 200
	})
	f.doors.set(i, in)
}

func (f *fleet) startWorker(i int) {
	f.t.Helper()
	f.workers[i] = start(f.t, command{args: []string{"worker", "--provider", provider, "--config", f.file("worker.yaml")}})
}

// targets are what can be killed, and how.
func (f *fleet) targets() map[string]func(down time.Duration) {
	again := func(p *process, down time.Duration, restart func()) {
		require.True(f.t, p.running(), "it ended by itself")
		p.kill()
		pause(down)
		restart()
	}
	targets := map[string]func(time.Duration){
		"nats-server": func(down time.Duration) {
			require.NoError(f.t, f.nats.Kill())
			pause(down)
			require.NoError(f.t, f.nats.Start())
		},
	}
	for i := range f.workers {
		targets[fmt.Sprintf("ingress %d", i)] = func(down time.Duration) {
			again(f.doors.at(i).process, down, func() { f.startIngress(i) })
		}
		targets[fmt.Sprintf("worker %d", i)] = func(down time.Duration) {
			again(f.workers[i], down, func() { f.startWorker(i) })
		}
	}
	return targets
}

// pause lets a random or required while pass, which nothing outside can tell.
func pause(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
}

// TestBatchOutlivesKilledProcesses kills one process after another at random moments of a
// batch: while it is validated, while it runs, and while it ends.
func TestBatchOutlivesKilledProcesses(t *testing.T) {
	t.Parallel()
	seed := numberFrom(t, seedVariable, rand.Uint64())
	rounds := int(numberFrom(t, roundsVariable, chaosRounds))
	t.Logf("%s=%d", seedVariable, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	f := newFleet(t, clusterOptions{})
	names := []string{"ingress 0", "ingress 1", "worker 0", "worker 1", "nats-server"}
	kill, began := f.targets(), time.Now()
	for done := 0; done < rounds; done += chaosRounds {
		in := min(chaosRounds, rounds-done)
		order := make([]string, in)
		for i := range order {
			order[i] = names[i%len(names)]
		}
		random.Shuffle(in, func(i, j int) { order[i], order[j] = order[j], order[i] })
		r := f.startBatch(done, chaosLines)
		for i, name := range order {
			r.allow((i + 1) * chaosLines / in)
			at := i*chaosLines/in + random.IntN(chaosLines/in)
			switch i {
			case 0:
				at = 0 // soon after its creation, before it is validated or just then
			case in - 1:
				at = chaosLines - random.IntN(10)
			}
			if i < in-1 {
				r.awaitAnsweredFor(at, stallPatience)
			} else {
				r.awaitAnswered(at)
			}
			pause(time.Duration(random.Int64N(int64(300 * time.Millisecond))))
			down := time.Duration(random.Int64N(int64(2 * time.Second)))
			t.Logf("%s: %s is killed at line %d for %s", time.Since(began).Round(time.Millisecond), name, r.answered(), down)
			kill[name](down)
		}
		r.requireWhole()
	}
}

// TestBatchOutlivesAnOutageOfTheDatabase takes the database away in the middle of a batch.
func TestBatchOutlivesAnOutageOfTheDatabase(t *testing.T) {
	t.Parallel()
	down := databaseOutage
	if v := os.Getenv(databaseVariable); v != "" {
		var err error
		down, err = time.ParseDuration(v)
		require.NoError(t, err, databaseVariable)
	}
	pg := testkit.PostgresServer(t)
	f := newFleet(t, clusterOptions{database: pg.URL()})
	r := f.startBatch(0, chaosLines)
	r.allow(chaosLines / 2)
	r.awaitAnswered(chaosLines / 3)
	pg.Stop()
	r.allow(chaosLines)
	pause(down)
	pg.Start()
	back := time.Now()
	t.Logf("the database is back at line %d", r.answered())
	r.requireWhole()
	t.Logf("the batch ended %s later", time.Since(back))
	require.Equal(t, openai.BatchStatusCompleted, r.last.Status)
}
