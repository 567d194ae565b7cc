// Package tools is the module of Sluice's own linters and checks. It stands apart
// so that the main go.mod names only what the product needs: golangci-lint is a
// tool of this module, and its sub-folders are the small programs that `make check`
// runs beside it. Nothing here is part of the binary.
package tools
