package limits

import "time"

// SetWindow replaces the minute, so that a test of real time need not wait for it. It
// comes before Run.
func (l *Limiter) SetWindow(d time.Duration) { l.terms.window = d.Milliseconds() }
