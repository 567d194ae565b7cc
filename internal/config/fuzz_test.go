package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever the bytes are: no panic, no more faults than promised, no value of the
// environment in an error, and what loads can be shown and read back.
func FuzzLoad(f *testing.F) {
	files, err := filepath.Glob("../../deploy/examples/*.yaml")
	require.NoError(f, err)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(f, err)
		f.Add(data)
	}
	for _, text := range []string{
		"a: &a [*a]", "<<: *x", "? {a: b}\n: c", "- - - a", "a: !!binary x", "a: |+\n x\n\n", "a: >-\n x", "'a': \"b\\u00e9\"", "---\n---\n", "%YAML 1.2\n---\na",
		"server: {timeout: '${V}', address: ${V:-x}, max_body_bytes: 1e3}", "\ufeffdata_dir: x", "data_dir: $${V}", "{a: {b: [c, {d: e}]}}", "a:\r\n  b: c\r\n", "x: [\n", "data_dir: \"\\",
	} {
		f.Add([]byte(text))
	}
	const secret = "q7-very-secret-z9"
	environ := append(exampleEnv(), "V="+secret)
	f.Fuzz(func(t *testing.T, data []byte) {
		loaded, err := load(data, Options{Path: "f", Environ: environ})
		if err != nil {
			var invalid *InvalidError
			require.ErrorAs(t, err, &invalid)
			require.NotEmpty(t, invalid.Faults)
			require.LessOrEqual(t, len(invalid.Faults), maxFaults)
			require.NotContains(t, err.Error(), secret)
			return
		}
		shown, err := Show(loaded.Config)
		require.NoError(t, err)
		again, err := load(shown, Options{Path: "f", Environ: []string{}})
		if err != nil {
			// The masks of keys and of odd addresses are no keys and no addresses.
			require.Contains(t, string(shown), mask)
			return
		}
		if !strings.Contains(string(shown), mask) {
			require.Equal(t, loaded.Config, again.Config)
		}
	})
}
