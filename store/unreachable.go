package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
)

// Unreachable reports whether an error of a store says that the database cannot be asked at
// the moment, rather than what it answered: nobody listens, the connection was lost, the time
// was up, or the server is starting, stopping, full, or lets nobody in.
func Unreachable(err error) bool {
	if _, ok := errors.AsType[net.Error](err); ok { // a deadline's end is one, too
		return true
	}
	for _, lost := range []error{context.DeadlineExceeded, driver.ErrBadConn, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed} {
		if errors.Is(err, lost) {
			return true
		}
	}
	if said, ok := errors.AsType[sqlState](err); ok {
		return outOfService(said.SQLState())
	}
	if said, ok := errors.AsType[fileState](err); ok {
		return slices.Contains(outOfReach[:], said.Code()&0xff)
	}
	return false
}

// fileState is an error of SQLite, by its result code.
type fileState interface {
	error
	Code() int
}

// outOfReach are the result codes of a file that is locked, cannot be read or written, has
// no room, or cannot be opened: SQLITE_BUSY, _IOERR, _FULL and _CANTOPEN.
var outOfReach = [...]int{5, 10, 13, 14}

// sqlState is an error that a server tells, by the code of the SQL standard.
type sqlState interface {
	error
	SQLState() string
}

// outOfService goes by the classes of the codes: connection exceptions, a login that is
// refused, a database that is not there, resources that are used up, an operator at work, and
// errors of the system below.
func outOfService(code string) bool {
	for _, class := range []string{"08", "28", "3D", "53", "57P", "58"} {
		if strings.HasPrefix(code, class) {
			return true
		}
	}
	return false
}
