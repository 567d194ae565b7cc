//go:build !unix

package sqlite

func (t *turn) say() bool { return false }

func (t *turn) unsay() {}

func (t *turn) said() bool { return false }
