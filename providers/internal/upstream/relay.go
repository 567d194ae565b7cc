package upstream

import (
	"errors"

	"sluice/internal/openaiapi"
)

// ErrDone is what Relay's take returns at the event that ends the answer.
var ErrDone = errors.New("answer is done")

// Relay reads the answer as server-sent events until its end. It gives each event to
// take, and calls flush as soon as it would have to wait for the upstream, so that what
// arrived together travels together and nothing is held back. An event's data is valid
// until the flush that follows it.
//
// The answer ends with an error of take or flush, of which ErrDone is none, or where the
// events end, which is for ended to judge. Errors are to be given to Fail.
func (r *Response) Relay(take func(openaiapi.Event) error, flush func() error, ended func(error) error) error {
	events := r.Events()
	for {
		ev, err := events.Next()
		if err != nil {
			return ended(err)
		}
		err = take(ev)
		if err == nil && events.Buffered() {
			continue
		}
		if flushErr := flush(); flushErr != nil {
			return flushErr
		}
		if errors.Is(err, ErrDone) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
