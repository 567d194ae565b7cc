//go:build !unix

package sqlite

func (t *turn) wait() (said bool) { return false }

func (t *turn) waitNoMore() {}

func (t *turn) othersWait() bool { return false }
