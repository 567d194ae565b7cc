package routing

import "slices"

// Holds reports whether the condition holds for the request, whose model stands for
// resolved. It is for those who share the conditions and decide on other things.
func (w *When) Holds(q *Request, resolved string) bool { return w.holds(q, resolved) }

// holds reports whether the condition holds for the request, whose model stands for
// resolved.
func (w *When) holds(q *Request, resolved string) bool {
	for i := range w.All {
		if !w.All[i].holds(q, resolved) {
			return false
		}
	}
	if len(w.Any) > 0 && !anyHolds(w.Any, q, resolved) {
		return false
	}
	return !anyHolds(w.Not, q, resolved)
}

func anyHolds(matches []Match, q *Request, resolved string) bool {
	for i := range matches {
		if matches[i].holds(q, resolved) {
			return true
		}
	}
	return false
}

func (m *Match) holds(q *Request, resolved string) bool {
	switch {
	case len(m.Models) > 0 && !m.covers(q.Model, resolved) && (q.Counted == "" || !MatchesAny(m.Models, q.Counted)),
		len(m.Endpoints) > 0 && !slices.Contains(m.Endpoints, string(q.Kind)),
		len(m.Tenants) > 0 && !MatchesAny(m.Tenants, q.Tenant),
		len(m.Keys) > 0 && !MatchesAny(m.Keys, q.KeyID) && !MatchesAny(m.Keys, q.KeyName),
		m.Stream != nil && *m.Stream != q.Stream,
		m.Tools != nil && *m.Tools != q.Tools,
		m.Images != nil && *m.Images != q.Images,
		m.MinPromptTokens > 0 && q.PromptTokens < m.MinPromptTokens,
		m.MaxPromptTokens > 0 && q.PromptTokens > m.MaxPromptTokens:
		return false
	}
	return m.headersHold(q) && m.metadataHolds(q)
}

func (m *Match) covers(asked, resolved string) bool {
	return MatchesAny(m.Models, asked) || asked != resolved && MatchesAny(m.Models, resolved)
}

// headersHold reports whether the request has the headers. One that is absent or empty
// is covered by no glob.
func (m *Match) headersHold(q *Request) bool {
	for name, pattern := range m.Headers {
		if q.Header == nil {
			return false
		}
		value := q.Header(name)
		if value == "" || !Matches(pattern, value) {
			return false
		}
	}
	return true
}

func (m *Match) metadataHolds(q *Request) bool {
	for name, pattern := range m.Metadata {
		value, ok := q.Metadata[name]
		if !ok || !Matches(pattern, value) {
			return false
		}
	}
	return true
}

// foresee says what the condition comes to when nothing but the model is known: whether
// it could hold, and whether it holds whatever else the request has.
func (w *When) foresee(asked, resolved string) (could, must bool) {
	could, must = true, true
	for i := range w.All {
		c, m := w.All[i].foresee(asked, resolved)
		could, must = could && c, must && m
	}
	if len(w.Any) > 0 {
		c, m := foreseeAny(w.Any, asked, resolved)
		could, must = could && c, must && m
	}
	c, m := foreseeAny(w.Not, asked, resolved)
	return could && !m, must && !c
}

func foreseeAny(matches []Match, asked, resolved string) (could, must bool) {
	for i := range matches {
		c, m := matches[i].foresee(asked, resolved)
		could, must = could || c, must || m
	}
	return could, must
}

func (m *Match) foresee(asked, resolved string) (could, must bool) {
	if len(m.Models) > 0 && !m.covers(asked, resolved) {
		return false, false
	}
	more := len(m.Endpoints) > 0 || len(m.Tenants) > 0 || len(m.Keys) > 0 || len(m.Headers) > 0 || len(m.Metadata) > 0 ||
		m.Stream != nil || m.Tools != nil || m.Images != nil || m.MinPromptTokens > 0 || m.MaxPromptTokens > 0
	return true, !more
}
