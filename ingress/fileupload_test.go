package ingress

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/store"
)

func TestFormsInOtherOrders(t *testing.T) {
	t.Parallel()
	r := setupFiles(t, func(o *FileOptions) { o.ExpireAfter = 3 * time.Hour })
	f := r.upload(
		part{"file", `we"ird ☃` + ".txt", "x"}, part{"expires_after[seconds]", "", "7200"}, part{"purpose", "", "user_data"}, part{"expires_after[anchor]", "", "created_at"},
	)
	require.Equal(t, `we"ird ☃.txt`, f.Filename)
	require.Equal(t, f.CreatedAt+7200, *f.ExpiresAt)
	resp, _ := r.get("/v1/files/" + f.ID + "/content").whole()
	require.Equal(t, `attachment; filename*=utf-8''we%22ird%20%E2%98%83.txt`, resp.Header.Get("Content-Disposition"))
	require.Equal(t, "text/plain; charset=utf-8", resp.Header.Get("Content-Type"))

	f = r.upload(part{"expires_after.anchor", "", "created_at"}, part{"expires_after.seconds", "", "2592000"}, part{"purpose", "", "evals"}, part{"file", "../../etc/x.html", ""})
	require.Equal(t, "x.html", f.Filename, "the path of a name is left out")
	require.Equal(t, f.CreatedAt+2592000, *f.ExpiresAt)
	resp, body := r.get("/v1/files/" + f.ID + "/content").whole()
	require.Empty(t, body)
	require.Equal(t, "application/octet-stream", resp.Header.Get("Content-Type"))

	f = r.upload(part{"purpose", "", "vision"}, part{"file", strings.Repeat("n", 2000), "x"})
	require.Equal(t, f.CreatedAt+3*3600, *f.ExpiresAt, "what the configuration says")
	require.Len(t, f.Filename, store.MaxTextBytes)
}

func TestFormsThatAreRefused(t *testing.T) {
	t.Parallel()
	r := setupFiles(t)
	file, purpose := part{"file", "f", "content"}, part{"purpose", "", "user_data"}
	anchor, seconds := part{"expires_after[anchor]", "", "created_at"}, part{"expires_after[seconds]", "", "3600"}
	large := part{"file", "f", strings.Repeat("x", 1<<20+1)}
	for name, c := range map[string]struct {
		parts  []part
		status int
		code   inference.ErrorCode
		param  string
	}{
		"no file":                {[]part{purpose}, 400, inference.CodeInvalidRequest, "file"},
		"nothing":                {nil, 400, inference.CodeInvalidRequest, "file"},
		"no purpose":             {[]part{file}, 400, inference.CodeInvalidRequest, "purpose"},
		"unknown purpose":        {[]part{{"purpose", "", "fun"}, file}, 400, inference.CodeInvalidRequest, "purpose"},
		"our own purpose":        {[]part{file, {"purpose", "", "batch_output"}}, 400, inference.CodeInvalidRequest, "purpose"},
		"long purpose":           {[]part{file, {"purpose", "", strings.Repeat("x", 2000)}}, 400, inference.CodeInvalidRequest, "purpose"},
		"two purposes":           {[]part{purpose, file, purpose}, 400, inference.CodeInvalidRequest, "purpose"},
		"two files":              {[]part{purpose, file, file}, 400, inference.CodeInvalidRequest, "file"},
		"no name":                {[]part{purpose, {"file", "", "content"}}, 400, inference.CodeInvalidRequest, "file"},
		"unknown field":          {[]part{purpose, file, {"colour", "", "blue"}}, 400, inference.CodeInvalidRequest, "colour"},
		"other anchor":           {[]part{purpose, file, {anchor.name, "", "now"}, seconds}, 400, inference.CodeInvalidRequest, anchor.name},
		"no anchor":              {[]part{purpose, file, seconds}, 400, inference.CodeInvalidRequest, anchor.name},
		"no seconds":             {[]part{purpose, file, anchor}, 400, inference.CodeInvalidRequest, seconds.name},
		"too soon":               {[]part{purpose, file, anchor, {seconds.name, "", "3599"}}, 400, inference.CodeInvalidRequest, seconds.name},
		"too late":               {[]part{purpose, file, anchor, {seconds.name, "", "2592001"}}, 400, inference.CodeInvalidRequest, seconds.name},
		"no number":              {[]part{purpose, file, anchor, {seconds.name, "", "1h"}}, 400, inference.CodeInvalidRequest, seconds.name},
		"large batch":            {[]part{{"purpose", "", "batch"}, large}, 413, inference.CodeRequestTooLarge, "file"},
		"large batch, told late": {[]part{large, {"purpose", "", "batch"}}, 413, inference.CodeRequestTooLarge, "file"},
		"large file":             {[]part{purpose, {"file", "f", strings.Repeat("x", 2<<20+1)}}, 413, inference.CodeRequestTooLarge, "file"},
		"much beside the file":   {[]part{purpose, {"file", strings.Repeat("n", 1<<20), "x"}}, 413, inference.CodeRequestTooLarge, ""},
	} {
		resp, body := r.send(r.uploadRequest(c.parts...)).whole()
		require.Equal(t, c.status, resp.StatusCode, "%s: %s", name, body)
		var e struct {
			Error struct {
				Code  string
				Param *string
			}
		}
		require.NoError(t, json.Unmarshal([]byte(body), &e), name)
		require.Equal(t, string(c.code), e.Error.Code, name)
		if c.param == "" {
			require.Nil(t, e.Error.Param, name)
		} else {
			require.Equal(t, c.param, *e.Error.Param, name)
		}
	}
	r.send(r.request(http.MethodPost, r.server.URL+"/v1/files", `{"file":"x"}`, "Content-Type", "application/json")).fails(400, inference.CodeInvalidRequest)
	r.send(r.request(http.MethodPost, r.server.URL+"/v1/files", "x", "Content-Type", "multipart/form-data; boundary=b")).fails(400, inference.CodeInvalidRequest)
	cut := "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n" + rawForm + "no boundary follows"
	r.send(r.request(http.MethodPost, r.server.URL+"/v1/files", cut, "Content-Type", "multipart/form-data; boundary=b")).fails(400, inference.CodeInvalidRequest)
	req := r.uploadRequest(purpose, file)
	req.Header.Set("Content-Encoding", "gzip")
	r.send(req).fails(400, inference.CodeInvalidRequest)
	req = r.uploadRequest(purpose, file)
	req.Header.Set("Authorization", "Bearer nobody")
	r.send(req).fails(401, inference.CodeUnauthenticated)
	r.empty()
}

// raw opens a connection and sends the head of an upload and the beginning of its body.
func (r *fileRig) raw(announced int, body string) net.Conn {
	r.t.Helper()
	u, err := url.Parse(r.server.URL)
	require.NoError(r.t, err)
	conn, err := net.Dial("tcp", u.Host)
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = conn.Close() })
	require.NoError(r.t, conn.SetDeadline(time.Now().Add(soon)))
	_, err = fmt.Fprintf(conn, "POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n%s", r.key, announced, body)
	require.NoError(r.t, err)
	return conn
}

const rawForm = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n"

// begun waits until the contents hold something of an upload.
func (r *fileRig) begun() {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		entries, err := r.conn.NewEntryReader().Next(r.t.Context())
		return err == nil && len(entries) > 0
	}, soon, 5*time.Millisecond, "an upload is under way")
}

func TestUploadsThatStopInTheMiddle(t *testing.T) {
	t.Parallel()
	r := setupFiles(t)
	conn := r.raw(1<<20, rawForm+strings.Repeat("x", 400_000))
	r.begun()
	require.NoError(t, conn.Close())
	require.Eventually(t, func() bool {
		entries, err := r.conn.NewEntryReader().Next(t.Context())
		return err == nil && len(entries) == 0
	}, soon, 5*time.Millisecond, "nothing is left behind")
	r.empty()

	conn = r.raw(100<<20, "") // more than any file may have
	head := make([]byte, 12)
	_, err := io.ReadFull(conn, head)
	require.NoError(t, err)
	require.Equal(t, "HTTP/1.1 413", string(head), "at once")

	// Between the bounds the purpose decides, as soon as the file begins.
	purpose := "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n"
	conn = r.raw(3<<19, purpose+rawForm)
	_, err = io.ReadFull(conn, head)
	require.NoError(t, err)
	require.Equal(t, "HTTP/1.1 413", string(head), "at once")
}

func TestAnUploadThatDoesNotGetOn(t *testing.T) {
	t.Parallel()
	r := setupFiles(t, func(o *FileOptions) { o.Stall = 200 * time.Millisecond })
	conn := r.raw(1<<20, rawForm+strings.Repeat("x", 1000))
	reply, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(reply), "HTTP/1.1 504"), "%s", reply)
	r.empty()

	// One that drips gets no more time than one that sends nothing.
	conn = r.raw(1<<20, rawForm)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				_, _ = conn.Write([]byte("x"))
			}
		}
	}()
	head := make([]byte, 12)
	_, err = io.ReadFull(conn, head)
	close(stop)
	<-done
	require.NoError(t, err)
	require.Equal(t, "HTTP/1.1 504", string(head))
	r.empty()
}

func TestUploadsAtOnceAreBounded(t *testing.T) {
	t.Parallel()
	r := setupFiles(t, func(o *FileOptions) { o.MaxTransfers = 1 })
	conn := r.raw(1<<20, rawForm+strings.Repeat("x", 400_000))
	r.begun()
	resp := r.send(r.uploadRequest(part{"purpose", "", "batch"}, part{"file", "f", "x"})).fails(429, inference.CodeQueueFull)
	require.NotEmpty(t, resp.Header.Get("Retry-After"))
	require.NoError(t, conn.Close())
	require.Eventually(t, func() bool { return len(r.ingress.files.uploads) == 0 }, soon, 5*time.Millisecond)
	f := r.upload(part{"purpose", "", "batch"}, part{"file", "f", "x"})

	r.ingress.files.downloads <- struct{}{}
	r.get("/v1/files/"+f.ID+"/content").fails(429, inference.CodeQueueFull)
	<-r.ingress.files.downloads
	_, body := r.get("/v1/files/" + f.ID + "/content").whole()
	require.Equal(t, "x", body)
}
