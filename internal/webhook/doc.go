// Package webhook has what Sluice says to a client's server when something has come to
// its end, by the Standard Webhooks specification (standardwebhooks.com): which events
// there are and how they read, how they are signed, which addresses may be called, one
// attempt of a delivery, and when the next one is due.
//
// It remembers nothing and runs nothing by itself: events and deliveries are package
// store's, and the loop that delivers them is the ingress's.
package webhook
