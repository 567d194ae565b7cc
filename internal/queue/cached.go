package queue

import (
	"fmt"

	"github.com/nats-io/nats.go"
)

// cachedSubject is where ingresses tell each other which answers they have brought into the
// database.
const cachedSubject = "ctl.cached"

const cachedKey = 32 // bytes of an answer's key

// TellCached tells all ingresses the keys of answers that are in the database now. It does
// not wait, and who does not hear it is not told again.
func (c *Conn) TellCached(keys [][cachedKey]byte) error {
	data := make([]byte, 0, len(keys)*cachedKey)
	for i := range keys {
		data = append(data, keys[i][:]...)
	}
	if err := c.nc.Publish(cachedSubject, data); err != nil {
		return fmt.Errorf("tell of %d cached answers: %w", len(keys), err)
	}
	return nil
}

// HearCached has fn take the keys that ingresses tell, this one's own among them. Calls come
// from one goroutine.
func (c *Conn) HearCached(fn func(keys [][cachedKey]byte)) (*Ear, error) {
	sub, err := c.subscribe(cachedSubject, func(m *nats.Msg) {
		keys := make([][cachedKey]byte, len(m.Data)/cachedKey)
		for i := range keys {
			copy(keys[i][:], m.Data[i*cachedKey:])
		}
		fn(keys)
	})
	if err != nil {
		return nil, err
	}
	return &Ear{sub}, nil
}
