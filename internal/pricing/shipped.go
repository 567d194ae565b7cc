package pricing

import (
	_ "embed" // for prices.yaml
	"fmt"
	"sync"
	"time"

	"github.com/goccy/go-yaml"

	"sluice/internal/inference"
)

//go:embed prices.yaml
var pricesFile []byte

// shipped returns the lists that come with the program, by provider type. The file is part
// of the program: a test reads it, so that nothing is left to go wrong here.
var shipped = sync.OnceValue(func() map[string]*list {
	vendors, _ := readPrices(pricesFile)
	lists := map[string]*list{typeSim: newList([]Price{{Models: []string{"*"}}})}
	for vendor, prices := range vendors {
		lists[vendor] = newList(prices)
	}
	return lists
})

// readPrices reads a file of prices, which has a list for each vendor.
func readPrices(text []byte) (map[string][]Price, error) {
	var file map[string][]entry
	if err := yaml.UnmarshalWithOptions(text, &file, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("read prices: %w", err)
	}
	vendors := make(map[string][]Price, len(file))
	for vendor, entries := range file {
		for _, e := range entries {
			vendors[vendor] = append(vendors[vendor], e.price())
		}
	}
	return vendors, nil
}

// entry is a price as the file has it.
type entry struct {
	Models      []string   `yaml:"models"`
	From        day        `yaml:"from"`
	Input       money      `yaml:"input"`
	CachedInput *money     `yaml:"cached_input"`
	Output      money      `yaml:"output"`
	Reasoning   *money     `yaml:"reasoning"`
	Long        *longEntry `yaml:"long"`
}

type longEntry struct {
	Over        int64  `yaml:"over"`
	Input       money  `yaml:"input"`
	CachedInput *money `yaml:"cached_input"`
	Output      money  `yaml:"output"`
}

func (e entry) price() Price {
	p := Price{
		Models: e.Models, From: time.Time(e.From), Input: inference.Cost(e.Input), CachedInput: (*inference.Cost)(e.CachedInput),
		Output: inference.Cost(e.Output), Reasoning: (*inference.Cost)(e.Reasoning),
	}
	if l := e.Long; l != nil {
		p.Long = &LongPrice{
			Over: l.Over, Input: inference.Cost(l.Input), CachedInput: (*inference.Cost)(l.CachedInput), Output: inference.Cost(l.Output),
		}
	}
	return p
}

// money is an amount that is read as it is written, not as a floating-point number.
type money inference.Cost

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (m *money) UnmarshalYAML(text []byte) error {
	cost, err := inference.ParseCost(string(text))
	*m = money(cost)
	return err
}

// day is the beginning of a day in UTC.
type day time.Time

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (d *day) UnmarshalYAML(text []byte) error {
	t, err := time.Parse(time.DateOnly, string(text))
	*d = day(t)
	return err
}
