package config

// prices checks a provider's prices. Of those that cover a model the latest that has begun
// counts, so that only one from the same time can keep another from ever counting.
func (v *validator) prices(prices []Price, at path) {
	earlier := make(map[int64][]string) // models by the time from which on they have a price
	for i, p := range prices {
		from := p.From.UnixNano()
		v.models(p.Models, earlier[from], at.at(i))
		earlier[from] = append(earlier[from], p.Models...)
	}
}
