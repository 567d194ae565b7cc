// Package queue is the one place that speaks NATS. It names the streams and
// subjects, carries jobs from an ingress to the workers of a provider, brings
// events and answers back, keeps a streamed answer for replay, and moves usage
// records to whoever owns the database.
//
// It decides nothing about requests: what to publish, when to try again, what a
// redelivery means and which answer counts belongs to its two users, ingress and
// worker. Neither of them sees a NATS type.
//
// The path of one job, with the file that holds each step:
//
//	dispatch.go   ingress → job stream            (headers in jobmsg.go, large bodies in blobs.go)
//	stored.go     the same for the lanes of stored jobs, many at once (exchange.go)
//	pull.go       job stream → worker, and its acknowledgement
//	answer.go     worker → ingress                (events, end, claims; bytes in frames.go),
//	              or worker → the next candidate's job stream
//	claims.go     worker → any ingress            (is a stored job still wanted)
//	results.go    worker → results stream → any ingress, for stored jobs (bytes in resultframe.go)
//	gather.go     the events of many streams in one message
//	listen.go     events → an ingress that did not accept the job
//	record.go     worker → event stream           (blocks of events for replay, read by replay.go)
//	presence.go   worker → all ingresses: what it serves
//	ledger.go     ingress or worker → usage stream → database
//	control.go    operator → all ingresses and workers: which providers are paused or drained
//	operate.go    operator → ingresses and workers: purges, and resets of breakers
//	inspect.go    what stands in a queue
//	deadletters.go  what nobody could read, and its way back
//	files.go      ingress → contents of files (filereader.go reads them)
package queue
