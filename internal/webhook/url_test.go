package webhook

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCheckURL(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text       string
		strict, ok bool // allowed as it is, and with private networks
	}{
		{"https://example.com", true, true},
		{"https://example.com:8443/in?token=x%20y", true, true},
		{"HTTPS://EXAMPLE.COM./", true, true},
		{"https://[2606:4700:4700::1111]/", true, true},
		{"https://8.8.8.8/", true, true},
		{"http://example.com/", false, true},
		{"https://localhost/", false, true},
		{"https://LOCALHOST./", false, true},
		{"https://hooks.localhost/", false, true},
		{"https://127.0.0.1:1/", false, true},
		{"https://[::1]/", false, true},
		{"https://[::ffff:10.0.0.1]/", false, true},
		{"https://[fe80::1%25eth0]/", false, true},
		{"https://169.254.169.254/latest/meta-data", false, true},
		{"", false, false},
		{"example.com", false, false},
		{"//example.com", false, false},
		{"https:example.com", false, false},
		{"https://", false, false},
		{"https:///path", false, false},
		{"https://:443/", false, false},
		{"ftp://example.com/", false, false},
		{"file:///etc/passwd", false, false},
		{"gopher://example.com/", false, false},
		{"https://me@example.com/", false, false},
		{"https://me:pass@example.com/", false, false},
		{"https://@example.com/", false, false},
		{"https://example.com/#top", false, false},
		{"https://example.com/#", false, false},
		{"https://example.com:0/", false, false},
		{"https://example.com:65536/", false, false},
		{"https://example.com:/", false, false},
		{"https://example.com:http/", false, false},
		{"https://exa mple.com/", false, false},
		{"https://example.com/a b", false, false},
		{"https://example.com/\r\nx: y", false, false},
		{"https://example.com/\x00", false, false},
		{"https://example.com/\xff", false, false},
		{"https://[::1/", false, false},
		{"https://example.com/" + strings.Repeat("x", MaxURLBytes), false, false},
	} {
		require.Equal(t, c.strict, CheckURL(c.text, false) == nil, "%q", c.text)
		err := CheckURL(c.text, true)
		require.Equal(t, c.ok, err == nil, "%q: %v", c.text, err)
		if err != nil && len(c.text) > 5 {
			require.NotContains(t, err.Error(), c.text)
		}
	}
}

// Whatever passes is an address that can be dialled as it was judged.
func FuzzCheckURL(f *testing.F) {
	for _, seed := range []string{
		"https://example.com/in?x=y", "https://127.0.0.1", "https://[::ffff:127.0.0.1]:443/", "https://me@x", "http://[fe80::1%25en0]/",
		"https://0x7f.1/", "https://2130706433/", "https://example.com:99999", "https://a\tb/", "https://ex%41mple.com/", "https://[::]/",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		strict, loose := CheckURL(text, false), CheckURL(text, true)
		if strict == nil {
			require.NoError(t, loose, "what is allowed stays so with private networks")
		}
		if loose != nil {
			return
		}
		u, err := url.Parse(text)
		require.NoError(t, err)
		require.LessOrEqual(t, len(text), MaxURLBytes)
		require.Contains(t, []string{"http", "https"}, u.Scheme)
		require.NotEmpty(t, u.Hostname())
		require.Nil(t, u.User)
		require.NotContains(t, text, "\n")
		if strict != nil {
			return
		}
		require.Equal(t, "https", u.Scheme)
		if a, err := netip.ParseAddr(u.Hostname()); err == nil {
			require.True(t, IsPublic(a), text)
		}
	})
}

func TestLanes(t *testing.T) {
	t.Parallel()
	require.Equal(t, Lane("a", "https://X.example.com/1"), Lane("a", "https://x.example.com/2"))
	require.NotEqual(t, Lane("a", "https://x.example.com/"), Lane("b", "https://x.example.com/"))
	require.NotEqual(t, Lane("a", "https://x.example.com/"), Lane("a", "https://y.example.com/"))
}
