package apikey_test

import (
	"crypto/sha256"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"sluice/internal/apikey"
)

func TestMintedKeysAreWellFormedAndDiffer(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		secret := apikey.Mint()
		require.Len(t, secret, 56)
		require.True(t, strings.HasPrefix(secret, "sk-sluice-"))
		require.True(t, apikey.WellFormed(secret), secret)
		require.False(t, seen[secret], "the same key twice")
		seen[secret] = true
	}
}

func TestMintUsesTheWholeAlphabetEvenly(t *testing.T) {
	t.Parallel()
	const keys = 5000
	count := map[rune]int{}
	for range keys {
		for _, c := range apikey.Mint()[len("sk-sluice-") : len("sk-sluice-")+40] {
			count[c]++
		}
	}
	require.Len(t, count, 62)
	mean := keys * 40 / 62
	for c, n := range count {
		// Nine standard deviations; a modulo without rejection favours eight
		// characters by a quarter and lands far outside.
		require.InDelta(t, mean, n, 9*57, "character %q", c)
	}
}

func TestWellFormedRefuses(t *testing.T) {
	t.Parallel()
	good := apikey.Mint()
	swapped := []byte(good)
	for i := 10; i < 49; i++ {
		if swapped[i] != swapped[i+1] {
			swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
			break
		}
	}
	cases := map[string]string{
		"empty":             "",
		"prefix only":       "sk-sluice-",
		"another prefix":    "sk-openai-" + good[10:],
		"one short":         good[:len(good)-1],
		"one long":          good + "0",
		"leading space":     " " + good,
		"newline":           good[:len(good)-1] + "\n",
		"swapped letters":   string(swapped),
		"checksum missing":  good[:50] + "000000",
		"outside base62":    good[:20] + "-" + good[21:],
		"upper-cased":       strings.ToUpper(good),
		"not UTF-8":         good[:20] + "\xff" + good[21:],
		"someone else's":    "sk-proj-abcdefghijklmnopqrstuvwxyz",
		"very long garbage": strings.Repeat("a", 1<<20),
	}
	for name, secret := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.False(t, apikey.WellFormed(secret))
		})
	}
}

func TestEverySingleTypingErrorIsNoticed(t *testing.T) {
	t.Parallel()
	good := apikey.Mint()
	for i := range good {
		for _, c := range []byte("0aZ_") {
			if good[i] == c {
				continue
			}
			typed := good[:i] + string(c) + good[i+1:]
			require.False(t, apikey.WellFormed(typed), "position %d", i)
		}
	}
}

func TestHashIsSHA256(t *testing.T) {
	t.Parallel()
	require.Equal(t, sha256.Sum256([]byte("sk-x")), apikey.Hash("sk-x"))
}

func TestDisplay(t *testing.T) {
	t.Parallel()
	secret := apikey.Mint()
	shown := apikey.Display(secret)
	require.Equal(t, secret[:14]+"…"+secret[52:], shown)

	require.Equal(t, "my-l…", apikey.Display("my-long-own-key-from-a-config-file"))
	require.Equal(t, "…", apikey.Display("short"))
	require.Equal(t, "…", apikey.Display("ключ-ключ-ключ-ключ-ключ"), "never cuts a character in two")
	require.Equal(t, "…", apikey.Display(""))
}

func FuzzWellFormed(f *testing.F) {
	f.Add(apikey.Mint())
	f.Add("")
	f.Add("sk-sluice-")
	f.Add("sk-sluice-" + strings.Repeat("0", 46))
	f.Add(strings.Repeat("\xff", 56))
	f.Fuzz(func(t *testing.T, secret string) {
		shown := apikey.Display(secret)
		if utf8.ValidString(secret) {
			require.True(t, utf8.ValidString(shown))
		}
		if len(secret) >= 8 {
			require.NotContains(t, shown, secret)
		}
		if !apikey.WellFormed(secret) {
			require.LessOrEqual(t, len(shown), 4+len("…"))
			return
		}
		// Whatever passes must survive no change of a single character.
		for i := range len(secret) {
			changed := []byte(secret)
			changed[i] ^= 1
			require.False(t, apikey.WellFormed(string(changed)))
		}
	})
}
