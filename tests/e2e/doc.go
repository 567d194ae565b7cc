// Package e2e tests the built binary as an operator runs it: several processes, a
// nats-server and a Postgres of their own, scripted upstreams, and real signals.
//
// It holds tests alone. Each process that a test starts ends with the test, and with
// the test process when that is killed.
package e2e
