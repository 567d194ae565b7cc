// Package cache says which answers are kept for which requests: the policy, the wishes of
// a request, and the key under which an answer is found again. It decides and does no
// I/O; ingress has the two levels that answers are kept in.
package cache
