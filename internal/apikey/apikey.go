// Package apikey makes and recognises the secrets that clients authenticate with.
//
// A secret is "sk-sluice-", forty random base62 characters and six characters of
// checksum, so that a mistyped or invented key is refused by arithmetic alone,
// without a look-up in a database. The package never stores a key and never says
// whether one is valid: the store knows that by the secret's hash.
package apikey

import (
	"crypto/rand"
	"crypto/sha256"
	"hash/crc32"
	"strings"
)

const (
	prefix      = "sk-sluice-"
	randomLen   = 40
	checksumLen = 6
	bodyLen     = len(prefix) + randomLen
	secretLen   = bodyLen + checksumLen

	alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

	shownEnd = 4  // characters that Display leaves at either end
	shownMin = 24 // secrets shorter than this show nothing: the rest could be guessed
	masked   = "…"
)

// Mint returns a new secret with 238 bits of entropy.
func Mint() string {
	secret := make([]byte, 0, secretLen)
	secret = append(secret, prefix...)
	secret = appendRandom(secret, randomLen)
	return string(appendChecksum(secret, secret))
}

// WellFormed reports whether secret has the form that Mint gives it, with a
// checksum that matches. It says nothing about whether the key exists.
func WellFormed(secret string) bool {
	if len(secret) != secretLen || !strings.HasPrefix(secret, prefix) {
		return false
	}
	for i := len(prefix); i < bodyLen; i++ {
		if !isBase62(secret[i]) {
			return false
		}
	}
	var sum [checksumLen]byte
	appendChecksum(sum[:0], []byte(secret[:bodyLen]))
	return secret[bodyLen:] == string(sum[:])
}

// Hash returns what is stored instead of the secret. One round of SHA-256 is
// enough, where a password would need a slow hash: a minted secret has 238 bits
// of entropy, so nobody who holds the hash can search for it, and a request must
// not pay milliseconds for its authentication.
func Hash(secret string) [sha256.Size]byte { return sha256.Sum256([]byte(secret)) }

// Display returns a form of secret that is safe to list and to log, for instance
// sk-sluice-AbCd…wxyz. It is for people to tell their keys apart. Of a secret that
// Mint did not make it shows less, and of a short one nothing.
func Display(secret string) string {
	if WellFormed(secret) {
		return secret[:len(prefix)+shownEnd] + masked + secret[secretLen-shownEnd:]
	}
	if len(secret) < shownMin || !isPrintable(secret[:shownEnd]) {
		return masked
	}
	return secret[:shownEnd] + masked
}

// appendRandom appends n base62 characters, each equally likely: bytes beyond the
// last whole multiple of 62 are drawn again.
func appendRandom(dst []byte, n int) []byte {
	const limit = 256 - 256%len(alphabet)
	var buf [2 * randomLen]byte
	for {
		_, _ = rand.Read(buf[:]) // crypto/rand.Read never returns an error
		for _, b := range buf {
			if n == 0 {
				return dst
			}
			if int(b) < limit {
				dst = append(dst, alphabet[int(b)%len(alphabet)])
				n--
			}
		}
	}
}

// appendChecksum appends the CRC-32 of body in base62, most significant digit
// first. Six digits hold every 32-bit value.
func appendChecksum(dst, body []byte) []byte {
	sum := crc32.ChecksumIEEE(body)
	var digits [checksumLen]byte
	for i := checksumLen - 1; i >= 0; i-- {
		digits[i] = alphabet[sum%uint32(len(alphabet))]
		sum /= uint32(len(alphabet))
	}
	return append(dst, digits[:]...)
}

func isBase62(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
