package ingress

import "sluice/internal/inference"

// price fills in what a row of the ledger cost, at the prices of the time when its request
// was accepted. An answer from the cache costs nothing. Where nobody knows the tokens there
// is no cost, and it is not a known one; tokens that Sluice itself has estimated, of an
// answer that was cut, cost like others.
func (s *Settings) price(r *inference.Record) {
	r.Costed = true
	if r.Cache != "" {
		r.Cost, r.Priced = 0, true
		return
	}
	r.Cost, r.Priced = s.Prices.RowCost(r)
}

// priceAll prices the rows that nobody has priced: those of requests whose ingress was
// lost, and of processes of an older version.
func (s *Settings) priceAll(rows []inference.Record) {
	for i := range rows {
		if !rows[i].Costed {
			s.price(&rows[i])
		}
	}
}

// inCurrency is an amount as metrics show it, which are no books.
func inCurrency(c inference.Cost) float64 { return float64(c) / 1e9 }
