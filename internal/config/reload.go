package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"

	"github.com/goccy/go-yaml"
)

// When a changed setting takes force, as the tag reload says.
const (
	reloadLive    = "live"    // while the process runs
	reloadRestart = "restart" // when it is started the next time
)

// Reloaded returns what is in force after next was read in the place of old: next, but
// for the settings that need a restart, which stay as they are. waiting names those of
// them that have changed, in the order of the structs.
func Reloaded(old, next *Config) (inForce *Config, waiting []string) {
	merged := *next
	keep(specOf(merged), valueOf(old), valueOf(&merged), nil, &waiting)
	return &merged, waiting
}

// keep puts those settings of from into to that need a restart.
func keep(s *spec, from, to reflect.Value, p path, waiting *[]string) {
	for _, f := range s.fields {
		was, is, at := from.Field(f.index), to.Field(f.index), p.with(f.name)
		switch {
		case f.kind == kindStruct && is.Kind() == reflect.Struct:
			keep(f, was, is, at, waiting)
		case f.reload == reloadRestart && !reflect.DeepEqual(was.Interface(), is.Interface()):
			*waiting = append(*waiting, at.String())
			is.Set(was)
		}
	}
}

// ShowJSON is Show as JSON.
func ShowJSON(c *Config) ([]byte, error) {
	text, err := Show(c)
	if err != nil {
		return nil, err
	}
	if text, err = yaml.YAMLToJSON(text); err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return text, nil
}

// HashFile returns what Loaded.Hash would be of the file as it is now.
func HashFile(path string) (string, error) {
	data, err := readFile(path)
	if err != nil {
		return "", fmt.Errorf("read configuration: %w", err)
	}
	return hashOf(data), nil
}

// hashLen is how much is shown of a hash, in hexadecimal digits: enough to tell two
// contents apart.
const hashLen = 16

func hashOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])[:hashLen]
}
