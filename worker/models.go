package worker

import (
	"context"
	"fmt"
	"slices"
	"time"

	"sluice/internal/inference"
	"sluice/providers"
)

// Models are asked for again now and then: an upstream may have been given new ones.
// One that does not answer is asked more and more rarely, and keeps the models that
// it was last known to have.
const (
	modelsRefresh = time.Minute
	modelsRetry   = 5 * time.Second // the first pause; each further one is twice as long, up to modelsRefresh
)

func (p *pool) watchModels(ctx context.Context) {
	var said complaint
	retry := modelsRetry
	for {
		wait := modelsRefresh
		caps, err := p.member.Provider.Capabilities(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			wait, retry = retry, min(2*retry, modelsRefresh)
			if e := inference.AsError(err); said.news(fmt.Sprint(e.Code, e.Status)) {
				p.worker.log.Warn("models of provider not known", append([]any{"provider", p.member.Name}, loggable(e)...)...)
			}
		default:
			retry = modelsRetry
			if said.over() {
				p.worker.log.Info("models of provider are known again", "provider", p.member.Name)
			}
			p.models.Store(&caps.Models)
			traits := traitsOf(caps)
			p.traits.Store(&traits)
			p.worker.announce(false)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// traitsOf lists what the provider can do: for the models that differ, then for all.
func traitsOf(caps providers.Capabilities) []inference.ModelTraits {
	return append(slices.Clone(caps.Special), inference.ModelTraits{Models: []string{"*"}, Traits: caps.Traits})
}
