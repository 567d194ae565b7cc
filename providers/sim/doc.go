// Package sim is a simulated provider: it needs no network and no account, and it
// always gives the same answer to the same request.
//
// Its text means nothing, but everything around it is honest: the answer has
// OpenAI's form, its tokens are counted as they are made, a plain answer takes as
// long as the same answer streamed, and limits and stop sequences are kept to. It
// serves chat completions and embeddings; the vectors mean nothing either, but the
// same text has the same one of length 1 each time. It never calls a tool and follows
// no JSON Schema. It is for first steps, demonstrations, drills and tests.
//
// # Misbehaving on request
//
// A request may carry an object named sim, which no other provider understands and
// which says how this one call is to go:
//
//	{
//	  "model": "sim",
//	  "messages": [{"role": "user", "content": "Hello"}],
//	  "sim": {"status": 429, "retry_after": "2s", "times": 1}
//	}
//
// The call fails as it would with an upstream that answers with status 429 and
// Retry-After: 2; when it is made again it succeeds. The members are:
//
//	status             the answer is an error of this HTTP status, 400 to 599
//	retry_after        what such an answer says in Retry-After, up to 24h; needs status
//	unreachable        true: there is no connection
//	hang               true: nothing comes until the call is given up
//	malformed          true: the answer cannot be understood
//	refusal            context_too_long or content_refused: an error of status 400 says so;
//	                   content_filter: an answer that is held back whole, or an error
//	                   where the call wants that to be one
//	cut_after          the answer ends after so many tokens of each choice, 0 to 10,000,
//	                   as if the connection had broken; with malformed or hang, this
//	                   is where the nonsense or the silence begins
//	times              only the first calls of the request misbehave, 1 to 1,000
//	first_token_delay  replaces the configured delay, up to 1h
//	tokens_per_second  replaces the configured pace, 0 (no wait) to 1e9
//	completion_tokens  replaces the configured length, 1 to 10,000
//
// Durations are texts such as "1.5s", or seconds. A call has at most one of status,
// unreachable, hang, malformed and refusal, and cut_after goes with hang and malformed
// alone. What
// goes wrong does so when the first token is due, or after the tokens of cut_after,
// of which zero means that not even the opening chunk comes. A call that misbehaves
// on request is not counted in the configured failure rate. The delays end with the
// call's deadline in any case. Embeddings know neither completion_tokens nor
// tokens_per_second, and go wrong as a whole.
//
// Whatever cannot be followed to the letter, such as an unknown member, is refused
// as an invalid request that names the member ("sim.status").
//
// What times counts is the calls of one body under one request id, in this process,
// whichever simulated provider they reach, for 15 minutes from the first: retries and
// failovers alike. A call without a request id is a first call each time.
package sim
