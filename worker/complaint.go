package worker

import (
	"errors"

	"sluice/internal/inference"
)

// complaint remembers what was last complained of in the log, so that a fault which
// lasts is told once and not at every try.
type complaint struct{ of string }

// news reports whether this fault is another one than the last.
func (c *complaint) news(of string) bool {
	changed := c.of != of
	c.of = of
	return changed
}

// over reports whether there was a fault, and forgets it.
func (c *complaint) over() bool { return c.news("") }

// loggable is what a log may say of a provider's error: its class and the cause on our
// side of the wire. The message may hold the upstream's own words, and with them the
// client's prompt.
func loggable(e *inference.Error) []any {
	args := []any{"code", string(e.Code)}
	if e.Status != 0 {
		args = append(args, "upstream_status", e.Status)
	}
	if _, worded := errors.AsType[*inference.Error](e.Err); e.Err != nil && !worded {
		args = append(args, "error", e.Err)
	}
	return args
}
