package cache

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Wish is what a request's Cache-Control says (RFC 9111, 5.2.1), as far as it means
// anything here.
type Wish struct {
	NoCache      bool // the answer is to be fetched anew, and may be kept
	NoStore      bool // nothing is to be read or kept
	OnlyIfCached bool // no provider is to be asked

	MaxAge   time.Duration // an older answer is never given; negative: any age will do
	MaxStale time.Duration // how long after its time an answer is still welcome
}

// Asks reports whether the wish is for a cache where no rule has one.
func (w Wish) Asks() bool { return w.MaxAge >= 0 || w.OnlyIfCached }

// accepts reports whether an answer of this age is welcome. What its time is does not
// count.
func (w Wish) accepts(age time.Duration) bool { return w.MaxAge < 0 || age <= w.MaxAge }

// forever stands for a max-stale without a value: however stale.
const forever = time.Duration(math.MaxInt64)

// maxDelta is the number of seconds that stands for all larger ones (RFC 9111, 1.2.2).
const maxDelta = math.MaxInt32

// maxDirectives bounds what is read of the headers.
const maxDirectives = 64

// WishOf reads the headers Cache-Control. A directive that is not known or malformed is
// ignored; of one that is given more than once the stricter counts.
func WishOf(h http.Header) Wish {
	w := Wish{MaxAge: -1}
	read := 0
	for _, line := range h.Values("Cache-Control") {
		for item := range strings.SplitSeq(line, ",") {
			if read++; read > maxDirectives {
				return w
			}
			name, value, given := strings.Cut(strings.TrimSpace(item), "=")
			w = w.with(strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value), given)
		}
	}
	return w
}

func (w Wish) with(name, value string, given bool) Wish {
	switch name {
	case "no-cache":
		w.NoCache = w.NoCache || !given
	case "no-store":
		w.NoStore = w.NoStore || !given
	case "only-if-cached":
		w.OnlyIfCached = w.OnlyIfCached || !given
	case "max-age":
		if d, ok := delta(value); ok && (w.MaxAge < 0 || d < w.MaxAge) {
			w.MaxAge = d
		}
	case "max-stale":
		d, ok := delta(value)
		if !given {
			d, ok = forever, true
		}
		if ok && (w.MaxStale == 0 || d < w.MaxStale) {
			w.MaxStale = d
		}
	}
	return w
}

// delta reads a number of seconds, as a token or as a quoted string (RFC 9111, 5.2).
func delta(value string) (time.Duration, bool) {
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		value = value[1 : len(value)-1]
	}
	if value == "" || strings.Trim(value, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		n = maxDelta // it is a number, and a large one
	}
	return time.Duration(min(n, maxDelta)) * time.Second, true
}

// State is how an answer that is kept stands to a request.
type State uint8

// The states.
const (
	Useless State = iota // it may not be given
	Stale                // it may be given because the request says so
	Spare                // it may be given, marked as stale, when no provider can serve
	Fresh
)

// Judge says how an answer stands to a request: one that was made at the time and kept to
// be given until fresh, and as a spare until stale. The rule in force bounds what the one
// said under which it was kept.
func (r *Rule) Judge(w Wish, made, fresh, stale, now time.Time) State {
	fresh = earlier(fresh, made.Add(r.TTL))
	stale = earlier(stale, fresh.Add(r.StaleIfError))
	age := now.Sub(made)
	switch {
	case !w.accepts(age):
		return Useless // also when nobody can serve: RFC 9111, 5.2.1.1
	case now.Before(fresh):
		return Fresh
	case w.MaxStale > 0 && now.Sub(fresh) <= w.MaxStale:
		return Stale
	case now.Before(stale):
		return Spare
	}
	return Useless
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
