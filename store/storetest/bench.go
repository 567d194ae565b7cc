package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/store"
)

// BenchmarkJobs measures what the life of background jobs costs a database: to accept one,
// to lease a hundred out of a backlog, to say where they are, to finish a hundred of them or
// of a batch's lines.
func BenchmarkJobs(b *testing.B, s store.Store) {
	require.NoError(b, s.Migrate(b.Context()))
	ids := 0
	create := func(b *testing.B, n int) []string {
		b.Helper()
		made := make([]string, n)
		for i := range made {
			made[i] = fmt.Sprintf("job-%09d", ids)
			require.NoError(b, s.CreateJob(b.Context(), jobAt(made[i], fmt.Sprintf("tenant-%d", ids%10), noon)))
			ids++
		}
		return made
	}
	b.Run("CreateJob", func(b *testing.B) {
		for b.Loop() {
			create(b, 1)
		}
	})
	b.Run("LeaseJobs100", func(b *testing.B) {
		create(b, 10*store.MaxJobs) // a backlog of ten tenants
		now := noon
		for b.Loop() {
			now = now.Add(lease) // earlier leases have run out
			jobs, err := s.LeaseJobs(b.Context(), now, lease, store.MaxJobs)
			require.NoError(b, err)
			require.Len(b, jobs, store.MaxJobs)
		}
	})
	b.Run("MarkDispatched100", func(b *testing.B) {
		var sent []store.Dispatch
		for _, id := range create(b, store.MaxJobs) {
			sent = append(sent, store.Dispatch{ID: id, Provider: "openai", Seq: 7})
		}
		now := noon
		for b.Loop() {
			now = now.Add(time.Second)
			useless, err := s.MarkDispatched(b.Context(), sent, now)
			require.NoError(b, err)
			require.Empty(b, useless)
		}
	})
	for name, batch := range map[string]string{"FinishJobs100": "", "FinishLines100": "batch_1"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				ids := create(b, store.MaxJobs)
				if batch != "" {
					toLines(b, s, batch, ids...)
				}
				ends := make([]store.JobEnd, store.MaxJobs)
				for i, id := range ids {
					ends[i] = newEnd(id)
					ends[i].FinishedAt = noon.Add(time.Minute)
				}
				b.StartTimer()
				news, err := s.FinishJobs(b.Context(), ends)
				require.NoError(b, err)
				require.Len(b, news, store.MaxJobs)
			}
		})
	}
}
