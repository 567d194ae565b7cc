// Package batch turns an uploaded file of requests into answers: it reads and checks the
// file's lines, lets them into the queue a window at a time and fairly, and writes what
// came of them into files. Every ingress has one Engine; a batch is followed by one of
// them at a time, which holds a lease on it, and another one goes on where that one fell.
//
// The database owns every line. What the package holds in memory is bounded, whatever the
// size of a file. It makes no call and publishes no message: dispatch is given to it, and
// so is routing. Of the queue it uses the contents of files alone. Its neighbours are
// store, which keeps batches and lines, and the ingress, which serves the API.
package batch
