package config

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"sluice/internal/inference"
)

// Size is a number of bytes. In the file it is a number, or text with a unit such
// as 32MiB.
type Size int64

// The forms of a duration and of a size with its unit, for the decoder and for the
// schema alike, so that an editor accepts what Load accepts.
const (
	durationPattern = `^(0|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+)$`
	sizePattern     = `^[0-9]+(\.[0-9]+)? ?(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB|PiB)$`
)

// sizeUnit is what a size's text may end with.
type sizeUnit struct {
	name  string
	bytes float64
}

// sizeUnits are tried in this order: B ends every other one.
var sizeUnits = []sizeUnit{
	{"PiB", 1 << 50},
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"KB", 1e3},
	{"B", 1},
}

// expected says what a value of each kind looks like.
func (k kind) expected() string {
	switch k {
	case kindStruct:
		return "a section with settings below it"
	case kindMap:
		return "a section with names below it"
	case kindList:
		return `a list, such as ["a", "b"]`
	case kindBool:
		return "true or false"
	case kindInt:
		return "a whole number"
	case kindSize:
		return "a number of bytes, or text such as 32MiB"
	case kindFloat:
		return "a number"
	case kindMoney:
		return "an amount of money, such as 12.50, with at most nine decimals"
	case kindDuration:
		return "a duration with its unit, such as 500ms, 30s or 5m"
	case kindTime:
		return "an RFC 3339 time, such as 2030-01-31T00:00:00Z"
	default:
		return "text"
	}
}

// parseScalar turns text into a value of the kind: string, bool, int, int64, float64,
// time.Duration, time.Time or
// inference.Cost. The problem is empty when it could.
func parseScalar(k kind, text string) (value any, problem string) {
	var err error
	switch k {
	case kindText:
		return text, ""
	case kindBool:
		value, err = parseBool(text)
	case kindInt:
		value, err = strconv.Atoi(text)
	case kindSize:
		value, err = parseSize(text)
	case kindFloat:
		value, err = parseFloat(text)
	case kindDuration:
		value, err = parseDuration(text)
	case kindTime:
		value, err = time.Parse(time.RFC3339, text)
	case kindMoney:
		value, err = inference.ParseCost(text)
	default:
		return nil, "must be " + k.expected()
	}
	if err != nil {
		return nil, "must be " + k.expected()
	}
	return value, ""
}

// parseBool takes the two words that YAML takes, and none of the others that mean yes.
func parseBool(text string) (bool, error) {
	if text != "true" && text != "false" {
		return false, strconv.ErrSyntax
	}
	return text == "true", nil
}

func parseDuration(text string) (time.Duration, error) {
	if !regexp.MustCompile(durationPattern).MatchString(text) {
		return 0, strconv.ErrSyntax
	}
	return time.ParseDuration(text)
}

func parseFloat(text string) (float64, error) {
	number, err := strconv.ParseFloat(text, 64)
	if err == nil && (math.IsInf(number, 0) || math.IsNaN(number)) {
		return 0, strconv.ErrRange
	}
	return number, err
}

func parseSize(text string) (int64, error) {
	if !regexp.MustCompile(sizePattern).MatchString(text) {
		return strconv.ParseInt(text, 10, 64)
	}
	i := slices.IndexFunc(sizeUnits, func(u sizeUnit) bool { return strings.HasSuffix(text, u.name) })
	unit := sizeUnits[i]
	number, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(text, unit.name)), 64)
	if err != nil {
		return 0, err
	}
	bytes := number * unit.bytes
	if bytes >= math.MaxInt64 {
		return 0, strconv.ErrRange
	}
	return int64(bytes), nil
}

// check holds a parsed value against the setting's bounds and words, and returns
// what is wrong.
func (s *spec) check(value any) string {
	if text, ok := value.(string); ok && len(s.oneOf) > 0 && !slices.Contains(s.oneOf, text) {
		return "must be one of " + strings.Join(s.oneOf, ", ")
	}
	below := s.min != nil && compareNumbers(value, s.min) < 0
	above := s.max != nil && compareNumbers(value, s.max) > 0
	if !below && !above {
		return ""
	}
	return fmt.Sprintf("must be from %s to %s", s.bounds[0], s.bounds[1])
}

// checkLen is check for the number of elements of a map or a list.
func (s *spec) checkLen(n int) string {
	if s.max == nil || compareNumbers(n, s.max) <= 0 {
		return ""
	}
	return "holds more than " + s.bounds[1] + " elements"
}

// compareNumbers compares two values of the same numeric kind.
func compareNumbers(a, b any) int {
	switch a := a.(type) {
	case int:
		b, _ := b.(int)
		return cmp.Compare(a, b)
	case int64:
		b, _ := b.(int64)
		return cmp.Compare(a, b)
	case inference.Cost:
		b, _ := b.(inference.Cost)
		return cmp.Compare(a, b)
	case float64:
		b, _ := b.(float64)
		return cmp.Compare(a, b)
	case time.Duration:
		b, _ := b.(time.Duration)
		return cmp.Compare(a, b)
	default:
		return 0
	}
}
