// Package inference holds the words of Sluice's domain: a job and its
// candidates, what a provider answers, what it cost, and how it fails.
//
// It imports the standard library only and does no I/O. Every other package may
// import it; it imports none of them.
package inference
