package token

import (
	"fmt"
	"sync/atomic"
	"testing"
)

// A caller that is remembered, beside one whose signature is checked.
func BenchmarkVerify(b *testing.B) {
	for _, alg := range []struct {
		name, kid string
		key       any
	}{{"RS256", "rsa", rsaKey()}, {"ES256", "ec", ec256()}, {"EdDSA", "ed", edKey()}} {
		raw := sign(b, alg.name, alg.key, claims{"kid": alg.kid}, valid())
		for _, hot := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/remembered=%t", alg.name, hot), func(b *testing.B) {
				r := setup(b)
				b.ReportAllocs()
				for b.Loop() {
					if !hot {
						r.known = newRemembered()
					}
					if _, err := r.Verify(b.Context(), raw); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// Many callers at once, all remembered.
func BenchmarkVerifyParallel(b *testing.B) {
	r := setup(b)
	raws := make([]string, 100)
	for i := range raws {
		raws[i] = ed(b, valid(claims{"sub": fmt.Sprint(i)}))
	}
	var n atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		i := int(n.Add(1))
		for pb.Next() {
			i++
			if _, err := r.Verify(b.Context(), raws[i%len(raws)]); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
