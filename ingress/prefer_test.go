package ingress

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPreferences(t *testing.T) {
	t.Parallel()
	none := preferences{wait: -1}
	async := preferences{async: true, wait: -1}
	waits := preferences{async: true, wait: 10 * time.Second}
	cases := []struct {
		name   string
		header []string
		want   preferences
	}{
		{"none", nil, none},
		{"empty", []string{""}, none},
		{"the token", []string{"respond-async"}, async},
		{"whatever its case", []string{"Respond-ASYNC"}, async},
		{"in a list", []string{"return=minimal, respond-async"}, async},
		{"in a list with gaps", []string{",, ,respond-async,"}, async},
		{"with a wait", []string{"respond-async, wait=10"}, waits},
		{"with a quoted wait", []string{`respond-async, wait="10"`}, waits},
		{"space around the sign", []string{"respond-async, wait = 10"}, waits},
		{"in several headers", []string{"wait=10", "handling=lenient", "respond-async"}, waits},
		{"with a parameter", []string{`respond-async; foo="a, b"; bar, wait=10;x`}, waits},
		{"in a parameter only", []string{"foo; respond-async"}, none},
		{"in a quoted string only", []string{`foo="a, respond-async"`}, none},
		{"behind an escaped quote", []string{`foo="a\", respond-async"`}, none},
		{"behind a quoted string", []string{`foo="a\\", respond-async`}, async},
		{"with an empty value", []string{`respond-async=""`}, async},
		{"with a value", []string{"respond-async=no"}, none},
		{"the first counts", []string{"wait=10, wait=20, respond-async", "wait=30"}, waits},
		{"a wait alone", []string{"wait=10"}, preferences{wait: 10 * time.Second}},
		{"no wait at all", []string{"wait=0"}, preferences{wait: 0}},
		{"a wait that is no number", []string{"respond-async, wait=soon"}, async},
		{"a wait below nothing", []string{"respond-async, wait=-1"}, async},
		{"a wait beyond all bounds", []string{"respond-async, wait=99999999999999999999"}, async},
		{"another word", []string{"respond-asynchronously"}, none},
		{"a quote that never ends", []string{`foo="a, respond-async`}, none},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, preferencesOf(http.Header{"Prefer": c.header}))
		})
	}
}
