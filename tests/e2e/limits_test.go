package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/apikey"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/store"
)

// What the upstream takes, as the configuration says it: a thousandth for a token of a
// prompt, twice that for one of an answer.
const (
	promptPrice = inference.Cost(1_000_000)
	outputPrice = 2 * promptPrice
	promptSize  = 1 // tokens that the upstream reports of each prompt; no estimate is smaller
)

// replicas is a cluster with several ingresses that count for the same limits.
type replicas struct {
	*cluster
	book    *book
	tenants map[string]limits.Limits
	model   limits.Limits // of limitedModel, whoever asks for it

	mu     sync.Mutex
	doors  []*ingress
	killed time.Time // the last ingress
}

const limitedModel = "glob-limited"

func newReplicas(t *testing.T, many int, tenants map[string]limits.Limits, model limits.Limits) *replicas {
	t.Helper()
	r := &replicas{cluster: operated(t), tenants: tenants, model: model, doors: make([]*ingress, many)}
	f, err := os.OpenFile(r.file("ingress.yaml"), os.O_RDWR, 0o600)
	require.NoError(t, err)
	text, err := os.ReadFile(r.file("ingress.yaml"))
	require.NoError(t, err)
	var listed []string
	for name, own := range tenants {
		listed = append(listed, fmt.Sprintf("{name: %s, limits: %s}", name, inJSON(t, own)))
	}
	slices.Sort(listed)
	changed := strings.Replace(string(text), "auth: {", "auth: {tenants: ["+strings.Join(listed, ", ")+"], ", 1)
	changed = strings.Replace(changed, "concurrency: 64}", `concurrency: 64, prices: [{models: ["*"], input: 1000, output: 2000}]}`, 1)
	require.NotContains(t, changed, "concurrency: 64}", "the prices are in place")
	changed += fmt.Sprintf("rate_limit: {models: [{models: [%s], requests_per_minute: %d, concurrent: %d}]}\n", limitedModel, model.RequestsPerMinute, model.Concurrent)
	_, err = f.WriteAt([]byte(changed), 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	r.book = newBook()
	r.upstream.Handle(r.book.serve)
	var starting sync.WaitGroup
	for i := range r.doors {
		starting.Go(func() { r.open(i) })
	}
	starting.Wait()
	require.False(t, t.Failed())
	return r
}

func inJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	require.NoError(t, err)
	return string(text)
}

// open starts the i-th ingress.
func (r *replicas) open(i int) {
	in := r.ingress()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.doors[i] = in
}

func (r *replicas) door(i int) *ingress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.doors[i%len(r.doors)]
}

// holder is a key with its limits.
type holder struct {
	id, tenant, secret string
	limits             limits.Limits
}

// key stores a key with limits.
func (r *replicas) key(name, tenant string, own limits.Limits) *holder {
	r.t.Helper()
	secret := apikey.Mint()
	h := &holder{id: "key_" + name, tenant: tenant, secret: secret, limits: own}
	require.NoError(r.t, r.db.CreateKey(r.t.Context(), store.Key{
		ID: h.id, Name: name, Tenant: tenant, Display: apikey.Display(secret), Hash: apikey.Hash(secret), Limits: &own,
	}, store.Change{Actor: "test"}))
	return h
}

// tallies are where a request of the key for the model counts, as the configuration has it.
func (r *replicas) tallies(h *holder, model string) []*tally {
	list := []*tally{r.book.tally("key="+h.id, "", h.limits)}
	for _, m := range h.limits.Models {
		if slices.Contains(m.Models, model) {
			list = append(list, r.book.tally("key="+h.id, model, limits.Limits{RequestsPerMinute: m.RequestsPerMinute, Concurrent: m.Concurrent}))
		}
	}
	if own, some := r.tenants[h.tenant]; some {
		list = append(list, r.book.tally("tenant="+h.tenant, "", own))
	}
	if model == limitedModel {
		list = append(list, r.book.tally("model="+model, "", r.model))
	}
	return list
}

// standing asks an ingress how a holder stands.
func (r *replicas) standing(in *ingress, holder string) (*adminapi.LimitsShown, error) {
	name, value, _ := strings.Cut(holder, "=")
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, "http://"+operatorsAddress(in.process)+adminapi.LimitsPath+"?"+url.Values{name: {value}}.Encode(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+hookToken)
	resp, err := in.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("limits of %s: status %d", holder, resp.StatusCode)
	}
	shown := new(adminapi.LimitsShown)
	return shown, json.NewDecoder(resp.Body).Decode(shown)
}

// scope is how the tally's own scope stands.
func (r *replicas) scope(in *ingress, t *tally) (adminapi.LimitScope, error) {
	shown, err := r.standing(in, t.holder)
	if err != nil {
		return adminapi.LimitScope{}, err
	}
	for _, s := range shown.Scopes {
		if t.model == "" && len(s.Models) == 0 || t.model != "" && slices.Contains(s.Models, t.model) {
			return s, nil
		}
	}
	return adminapi.LimitScope{}, fmt.Errorf("%s has no such scope", t)
}

// quiet requires that nothing is in hand of any scope that was ever used. Money that a
// killed ingress had reserved is held back for longer than any test lasts: until the ledger
// surely has what of it was spent. How much that is, is returned.
func (r *replicas) quiet(within time.Duration) (orphaned inference.Cost) {
	r.t.Helper()
	since, left := time.Now(), ""
	require.Eventually(r.t, func() bool {
		left, orphaned = "", 0
		for _, t := range r.book.all() {
			s, err := r.scope(r.door(0), t)
			if err != nil {
				left = err.Error()
				return false
			}
			orphaned += s.Budget.Orphaned
			if s.Concurrent.Used != 0 || s.Queued.Used != 0 || s.Waiting != 0 || s.Budget.Reserved != s.Budget.Orphaned {
				left = fmt.Sprintf("%s: %s", t, inJSON(r.t, s))
				return false
			}
		}
		return true
	}, within, 200*time.Millisecond, "something is in hand")
	require.Empty(r.t, left)
	r.t.Logf("quiet after %s", time.Since(since).Round(time.Millisecond))
	return orphaned
}

// What is tried at four ingresses at once is admitted as often as the limit says: no more,
// and no less.
func TestLimitsAreExactAcrossReplicas(t *testing.T) {
	t.Parallel()
	r := newReplicas(t, 4, map[string]limits.Limits{"shared": {RequestsPerMinute: 23}}, limits.Limits{RequestsPerMinute: 1000, Concurrent: 1000})
	r.worker(r.door(0), 1)
	cases := []struct {
		name   string
		limits limits.Limits
		want   int
	}{
		{"one", limits.Limits{RequestsPerMinute: 1}, 1},
		{"few", limits.Limits{RequestsPerMinute: 7}, 7},
		{"many", limits.Limits{RequestsPerMinute: 60}, 60},
		{"tokens", limits.Limits{TokensPerMinute: 1000}, 10},                          // of 96 each, which asked for a hundred or so
		{"money", limits.Limits{Budget: limits.Budget{Month: 1000 * promptPrice}}, 5}, // the sixth may cost more than is left
		{"model", limits.Limits{Models: []limits.ModelLimits{{Models: []string{"glob-own"}, RequestsPerMinute: 9}}}, 9},
	}
	var trying sync.WaitGroup
	got := make([]int, len(cases)+1)
	for i, c := range cases {
		h, model := r.key(c.name, "default", c.limits), clusterModel
		if c.name == "model" {
			model = "glob-own"
		}
		trying.Go(func() { got[i] = r.exhaust(c.name, c.want, model, h) })
	}
	three := []*holder{r.key("a", "shared", limits.Limits{}), r.key("b", "shared", limits.Limits{}), r.key("c", "shared", limits.Limits{})}
	trying.Go(func() { got[len(cases)] = r.exhaust("tenant", 23, clusterModel, three...) })
	trying.Wait()
	for i, c := range cases {
		require.Equal(t, c.want, got[i], c.name)
	}
	require.Equal(t, 23, got[len(cases)])
	r.requireConcurrent(6, 24)
	r.requireQueued(5, 20)
	require.Zero(t, r.quiet(patience))
	for _, tally := range r.book.all() {
		for i := range r.doors {
			s, err := r.scope(r.door(i), tally)
			require.NoError(t, err)
			require.Equal(t, []int64{tally.reached, tally.tokens}, []int64{s.RequestsPerMinute.Used, s.TokensPerMinute.Used}, "%s, as ingress %d has it", tally, i)
			if s.Budget.Month != nil {
				require.Equal(t, tally.cost, s.Budget.Month.Spent)
			}
		}
	}
	require.Empty(t, r.book.broken())
	table := r.door(2).operate("limits show many")
	require.Regexp(t, `(?m)^all +requests_per_minute +60 +60 +- +0 +in \d+s$`, table)
	require.Regexp(t, `(?m)^all +budget.month +1 +0\.955 +0 +0\.045 +\S+Z$`, r.door(3).operate("limits show key_money"))
	require.Regexp(t, `(?m)^all +requests_per_minute +23 +23 `, r.door(1).operate("limits show --tenant shared"))
}

// exhaust tries three times as often as a limit admits, and on until it has admitted so
// many, and returns how many it did admit.
func (r *replicas) exhaust(name string, want int, model string, keys ...*holder) int {
	const clients = 8
	var mu sync.Mutex
	var trying sync.WaitGroup
	admitted, tried := 0, 0
	deadline := time.Now().Add(patience)
	for n := range clients {
		trying.Go(func() {
			for i := n; ; i++ {
				mu.Lock()
				done := tried >= 3*want+2*clients && (admitted >= want || time.Now().After(deadline))
				tried++
				mu.Unlock()
				if done {
					return
				}
				q := r.ask(keys[i%len(keys)], model, fmt.Sprintf("%s-%d-%d", name, n, i), 95, 95)
				if r.plain(r.door(i+n), q) == http.StatusOK {
					mu.Lock()
					admitted++
					mu.Unlock()
				}
			}
		})
	}
	trying.Wait()
	return admitted
}

// requireConcurrent tries many requests at once while the upstream answers none.
func (r *replicas) requireConcurrent(most, many int) {
	r.t.Helper()
	h := r.key("concurrent", "default", limits.Limits{Concurrent: int64(most)})
	r.book.hold()
	statuses := r.atOnce(h, many)
	refused := 0
	for range many - most {
		require.Equal(r.t, http.StatusTooManyRequests, <-statuses)
		refused++
	}
	tally := r.tallies(h, clusterModel)[0]
	require.Eventually(r.t, func() bool { return r.book.running(tally) == most }, patience, pollEvery)
	s, err := r.scope(r.door(1), tally)
	require.NoError(r.t, err)
	require.EqualValues(r.t, most, s.Concurrent.Used)
	require.Zero(r.t, *s.Concurrent.Remaining)
	r.book.release()
	for range most {
		require.Equal(r.t, http.StatusOK, <-statuses)
	}
}

// requireQueued tries many requests at once while no worker begins any.
func (r *replicas) requireQueued(most, many int) {
	r.t.Helper()
	h := r.key("queued", "default", limits.Limits{Queued: int64(most)})
	in := r.door(0)
	in.operate("providers pause up")
	statuses := r.atOnce(h, many)
	for range many - most {
		require.Equal(r.t, http.StatusTooManyRequests, <-statuses)
	}
	in.waiting(most)
	s, err := r.scope(r.door(2), r.tallies(h, clusterModel)[0])
	require.NoError(r.t, err)
	require.EqualValues(r.t, most, s.Queued.Used)
	in.operate("providers resume up")
	for range most {
		require.Equal(r.t, http.StatusOK, <-statuses)
	}
}

// atOnce makes requests at all ingresses, and returns where their statuses come.
func (r *replicas) atOnce(h *holder, many int) <-chan int {
	statuses := make(chan int, many)
	for i := range many {
		q := r.ask(h, clusterModel, fmt.Sprintf("%s-%d", h.id, i), 5, 5)
		go func() { statuses <- r.plain(r.door(i), q) }()
	}
	return statuses
}
