package openaiapi

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// maxDepth bounds how deeply arrays and objects may be nested. No honest request
// comes near it, and everything that parses behind us may recurse.
const maxDepth = 100

// problem says why a text is not acceptable JSON.
type problem struct {
	offset  int
	reason  string
	tooDeep bool // well-formed up to here, but nested deeper than maxDepth
}

func (p *problem) Error() string { return fmt.Sprintf("%s at offset %d", p.reason, p.offset) }

// Valid reports whether data is one JSON value, nested at most 100 levels deep. It
// agrees with encoding/json otherwise.
func Valid(data []byte) bool { return check(data) == nil }

// checker walks a JSON text once, keeping its own stack: the text's nesting must
// never become our call depth.
type checker struct {
	data    []byte
	pos     int
	depth   int
	closers [maxDepth]byte // the bracket that closes each open container
	bad     *problem
}

// check returns what is wrong with data as a single JSON value, or nil.
func check(data []byte) *problem {
	c := checker{data: data}
	for c.value() {
		if !c.afterValue() {
			break
		}
	}
	return c.bad
}

// value consumes one scalar or empty container, opening as many containers as
// stand before it.
func (c *checker) value() bool {
	for {
		c.space()
		if c.pos >= len(c.data) {
			return c.fail("unexpected end of input")
		}
		switch b := c.data[c.pos]; {
		case b == '"':
			return c.str()
		case b == '{' || b == '[':
			if !c.open(b + 2) { // in ASCII each closer stands two after its opener
				return false
			}
			if c.peek() == b+2 {
				c.pos++
				c.depth--
				return true
			}
			if b == '{' && !c.key() {
				return false
			}
		case b == '-' || (b >= '0' && b <= '9'):
			return c.number()
		case b == 't':
			return c.literal("true")
		case b == 'f':
			return c.literal("false")
		case b == 'n':
			return c.literal("null")
		default:
			return c.fail("unexpected character")
		}
	}
}

// afterValue closes containers that end here. It reports whether another value
// must follow.
func (c *checker) afterValue() bool {
	for c.depth > 0 {
		closer := c.closers[c.depth-1]
		switch c.peek() {
		case ',':
			c.pos++
			return closer == ']' || c.key()
		case closer:
			c.pos++
			c.depth--
		case 0:
			if c.pos >= len(c.data) {
				return c.fail("unexpected end of input")
			}
			return c.fail("unexpected character")
		default:
			return c.fail("unexpected character")
		}
	}
	c.space()
	if c.pos < len(c.data) {
		return c.fail("unexpected data after the value")
	}
	return false
}

func (c *checker) open(closer byte) bool {
	if c.depth == maxDepth {
		c.bad = &problem{offset: c.pos, reason: "nesting too deep", tooDeep: true}
		return false
	}
	c.closers[c.depth] = closer
	c.depth++
	c.pos++
	return true
}

// key consumes a member's name and its colon.
func (c *checker) key() bool {
	if c.peek() != '"' {
		return c.fail("expected a string as member name")
	}
	if !c.str() {
		return false
	}
	if c.peek() != ':' {
		return c.fail("expected a colon after the member name")
	}
	c.pos++
	return true
}

// peek skips space and returns the next byte, or 0 at the end of the input.
func (c *checker) peek() byte {
	c.space()
	if c.pos >= len(c.data) {
		return 0
	}
	return c.data[c.pos]
}

func (c *checker) space() { c.pos = skipSpace(c.data, c.pos) }

func skipSpace(data []byte, pos int) int {
	for pos < len(data) {
		switch data[pos] {
		case ' ', '\t', '\n', '\r':
			pos++
		default:
			return pos
		}
	}
	return pos
}

func (c *checker) str() bool {
	c.pos++
	for {
		c.pos = plainRun(c.data, c.pos)
		if c.pos >= len(c.data) {
			return c.fail("unterminated string")
		}
		switch b := c.data[c.pos]; {
		case b == '"':
			c.pos++
			return true
		case b == '\\':
			if !c.escape() {
				return false
			}
		case b < 0x20:
			return c.fail("control character in string")
		default:
			c.pos++
		}
	}
}

// plainRun skips ahead to the first byte from pos on that can end or break a JSON
// string, eight bytes at a time. It may stop early near the end of data.
func plainRun(data []byte, pos int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for pos+8 <= len(data) {
		x := binary.LittleEndian.Uint64(data[pos:])
		quote := x ^ ones*'"'
		slash := x ^ ones*'\\'
		hit := ((x-ones*0x20)&^x | (quote-ones)&^quote | (slash-ones)&^slash) & highs
		if hit != 0 {
			return pos + bits.TrailingZeros64(hit)/8
		}
		pos += 8
	}
	return pos
}

func (c *checker) escape() bool {
	c.pos++
	if c.pos >= len(c.data) {
		return c.fail("unterminated string")
	}
	switch c.data[c.pos] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		c.pos++
		return true
	case 'u':
		c.pos++
		for range 4 {
			if c.pos >= len(c.data) {
				return c.fail("unterminated string")
			}
			if !isHex(c.data[c.pos]) {
				return c.fail("invalid escape in string")
			}
			c.pos++
		}
		return true
	default:
		return c.fail("invalid escape in string")
	}
}

func isHex(b byte) bool {
	return (b >= '0' && b <= '9') || (b >= 'a' && b <= 'f') || (b >= 'A' && b <= 'F')
}

func (c *checker) number() bool {
	if c.data[c.pos] == '-' {
		c.pos++
	}
	if c.pos < len(c.data) && c.data[c.pos] == '0' {
		c.pos++
	} else if !c.digits() {
		return false
	}
	if c.pos < len(c.data) && c.data[c.pos] == '.' {
		c.pos++
		if !c.digits() {
			return false
		}
	}
	if c.pos < len(c.data) && (c.data[c.pos] == 'e' || c.data[c.pos] == 'E') {
		c.pos++
		if c.pos < len(c.data) && (c.data[c.pos] == '+' || c.data[c.pos] == '-') {
			c.pos++
		}
		return c.digits()
	}
	return true
}

func (c *checker) digits() bool {
	start := c.pos
	for c.pos < len(c.data) && c.data[c.pos] >= '0' && c.data[c.pos] <= '9' {
		c.pos++
	}
	if c.pos == start {
		return c.fail("invalid number")
	}
	return true
}

func (c *checker) literal(word string) bool {
	if len(c.data)-c.pos < len(word) || string(c.data[c.pos:c.pos+len(word)]) != word {
		return c.fail("invalid literal")
	}
	c.pos += len(word)
	return true
}

func (c *checker) fail(reason string) bool {
	c.bad = &problem{offset: c.pos, reason: reason}
	return false
}
