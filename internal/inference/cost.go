package inference

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Cost is an amount of money in billionths of the currency that prices are given in. An
// integer adds up to the same sum in whatever order; int64 holds some nine billion.
type Cost int64

// costDigits are the decimals of a Cost, and costUnit is one of the currency.
const (
	costDigits = 9
	costUnit   = Cost(1_000_000_000)
)

var errCost = errors.New("is no amount of money, such as 12.50 with at most nine decimals")

// ParseCost reads a decimal number that is not negative, with at most nine decimals.
func ParseCost(text string) (Cost, error) {
	whole, decimals, point := strings.Cut(text, ".")
	if !digits(whole) || point && !digits(decimals) || len(decimals) > costDigits {
		return 0, errCost
	}
	units, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || units > math.MaxInt64/int64(costUnit)-1 {
		return 0, errCost
	}
	parts, err := strconv.ParseInt(decimals+strings.Repeat("0", costDigits-len(decimals)), 10, 64)
	if err != nil {
		return 0, errCost
	}
	return Cost(units)*costUnit + Cost(parts), nil
}

func digits(text string) bool {
	return text != "" && strings.Trim(text, "0123456789") == ""
}

// String writes the amount as a decimal number without zeros at its end.
func (c Cost) String() string {
	sign := ""
	magnitude := uint64(c)
	if c < 0 {
		sign, magnitude = "-", -magnitude
	}
	text := fmt.Sprintf("%s%d.%09d", sign, magnitude/uint64(costUnit), magnitude%uint64(costUnit))
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

// MarshalJSON writes the amount as a JSON number with all its decimals.
func (c Cost) MarshalJSON() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalJSON reads a JSON number, or a string with one, as ParseCost does.
func (c *Cost) UnmarshalJSON(data []byte) error {
	parsed, err := ParseCost(strings.Trim(string(data), `"`))
	if err != nil {
		return err
	}
	*c = parsed
	return nil
}
