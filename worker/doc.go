// Package worker takes jobs of its providers off the queue, makes the calls and
// sends back what comes of them.
//
// A worker is stateless and reaches outwards only: to NATS and to its providers. It
// never touches a database or a client. One job's way through the package:
//
//	lane.go     take no more jobs of a lane than there are slots for
//	pool.go     see a delivery through
//	gate.go     wait for one of the provider's slots, which the lanes share
//	judge.go    of a job that others may have: ask whether to run it, or to go on
//	execute.go  call the provider, with retries, and pass its chunks on
//	dispose.go  what becomes of it: an answer, or another try, here or elsewhere
//	pass.go     hold it, give it back, or pass it on to the next candidate
//	settle.go   hand over the end and acknowledge the job once it is accounted for
//
// A job of the background and batch lanes goes the same way but belongs to the database, not
// to an ingress with a waiting client: stored.go asks about it, and leaves its end with the
// server until any ingress has stored it. What differs is in the interface of owner.go.
//
// Whether a provider may be called is in breaker.go, how much at once in govern.go, and
// what other workers say of themselves in peers.go.
//
// A job is acknowledged only after its ingress has the answer and the usage stream
// its record, or the stream of results has both. Whatever happens before that, another
// worker gets the job.
package worker
