// Package ingress is the HTTP side of Sluice: it authenticates, checks and routes a
// request, sends it as a job to its provider's queue, and brings what comes back to
// the client.
//
// It never touches a provider's secret or address. One request's way through the
// package:
//
//	server.go   routes and what every request passes
//	keys.go     who is it
//	chat.go     check, route, accept (body.go reads what comes, route.go asks who may serve it, directory.go knows)
//	flight.go   one accepted job until its answer is accounted for (claim.go: which run of it counts)
//	answer.go   the plain answer
//	stream.go   the streamed answer (sse.go frames it, feed.go holds what is not yet sent)
//	resume.go   the same, for a client that comes back
//
// idempotency.go has requests with an idempotency key done once: idempotencykey.go knows
// which are the same, idempotencycall.go does them, and idempotencytape.go records the answer.
//
// A request that is answered later goes another way: jobs.go and jobobject.go are its API,
// jobwait.go waits for its end, and stored.go with dispatch.go, results.go and reconcile.go
// takes care of all jobs that the database owns, lines of batches too. batches.go is the API
// of those, batchlines.go gives their answers out, and internal/batch sees to the rest.
//
// files.go serves files: fileupload.go takes them in, filecontent.go gives them out, and
// filesweep.go removes what nobody needs.
//
// flights.go hears everything that the queue says about jobs, sweep.go looks after those
// that nothing is heard of, and ledger.go writes down what became of them. tenants.go knows
// what the database remembers of tenants. admin.go is the operators' side, on a listener of
// its own: operators.go says who they are, audit.go has what they change remembered, and
// internal/admin is the part of it that needs only the database.
package ingress
