package routing

import "sluice/internal/inference"

// Traits returns what the candidate's provider can do with its model; the zero Traits when
// nothing is known of it.
func (t *Table) Traits(c inference.Candidate) inference.Traits {
	for i := range t.Providers {
		if p := &t.Providers[i]; p.Name == c.Provider {
			if traits := traitsOf(p, c.Model); traits != nil {
				return *traits
			}
			break
		}
	}
	return inference.Traits{}
}
