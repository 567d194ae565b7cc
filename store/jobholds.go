package store

import "context"

// JobHolds is the part of the store that knows which ingress holds what is reserved of
// limits for a job whose message waits or runs: the one that sent it, as MarkDispatched says,
// until another one takes the job over. It reads an index of unfinished jobs alone.
type JobHolds interface {
	// HeldBy returns the ingresses, in order, who hold for an unfinished job with a message.
	// Jobs of which nobody said who does are left out.
	HeldBy(ctx context.Context) (ingresses []string, err error)

	// AdoptedJobs returns those of the ids whose job is unfinished, has a message, and another
	// ingress than this one to hold for it. Errors: ErrInvalid for more than MaxPage ids.
	AdoptedJobs(ctx context.Context, from string, ids []string) (adopted []string, err error)

	// AdoptJobs has another ingress hold for unfinished jobs with a message, lines too, and
	// returns them ordered by id and without bodies. They are at most limit and MaxMarks. Of
	// two who adopt at once each gets other jobs; who gets none need not be the last.
	AdoptJobs(ctx context.Context, from, by string, limit int) ([]Job, error)
}
