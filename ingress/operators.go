package ingress

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
)

// Operator is one who may ask the admin API, by a name that the audit knows.
type Operator struct {
	Name   string
	Token  string // an empty one admits nobody
	Viewer bool   // whether they may look only
}

// adminActor is who holds the one token that has no name.
const adminActor = "admin"

// badge is an operator by the hash of their token.
type badge struct {
	name   string
	hash   [sha256.Size]byte
	viewer bool
}

// badges returns the operators whom somebody can be.
func badges(token string, operators []Operator) []badge {
	var all []badge
	for _, o := range append([]Operator{{Name: adminActor, Token: token}}, operators...) {
		if o.Token != "" {
			all = append(all, badge{o.Name, sha256.Sum256([]byte(o.Token)), o.Viewer})
		}
	}
	return all
}

// bearer returns who bears the request's token, or nil. Hashes are compared, each of them
// and in constant time, so that the time it takes tells neither a token, nor its length,
// nor whose it is.
func bearer(r *http.Request, all []badge) (who *badge) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	given := sha256.Sum256([]byte(strings.TrimSpace(token)))
	for i := range all {
		if subtle.ConstantTimeCompare(given[:], all[i].hash[:]) == 1 {
			who = &all[i]
		}
	}
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return nil
	}
	return who
}

// operatorKey is where a request's context has its operator.
type operatorKey struct{}

// operatorsOnly lets requests through that bear an operator's token, those of viewers only
// if they look.
func (s *Ingress) operatorsOnly(all []badge, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := bearer(r, all)
		switch {
		case who == nil:
			s.adminFail(w, r, inference.Errorf(inference.CodeUnauthenticated, "The admin token is missing or wrong. Send it in the header: Authorization: Bearer YOUR_TOKEN."))
		case who.viewer && !onlyLooks(r):
			s.adminFail(w, r, inference.Errorf(inference.CodeForbidden, "The operator %q may look, and neither change anything nor read what clients wrote.", who.name))
		default:
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), operatorKey{}, who.name)))
		}
	})
}

// onlyLooks reports whether the request changes nothing, and shows nothing that a client
// wrote. A question about routing is posted because it does not fit into an address.
func onlyLooks(r *http.Request) bool {
	if strings.HasPrefix(r.URL.Path, adminapi.DeadLettersPath) && r.URL.Query().Has("body") {
		return false
	}
	return r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodPost && r.URL.Path == adminapi.ExplainPath
}

// actorOf returns who makes a request to the admin API.
func actorOf(r *http.Request) string {
	name, _ := r.Context().Value(operatorKey{}).(string)
	return name
}
