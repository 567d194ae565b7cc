package testkit

import (
	"net"
	"os"
	"strconv"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

func connectNATS(t *testing.T, server *NATSServer) *nats.Conn {
	t.Helper()
	conn, err := nats.Connect(server.URL())
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	return conn
}

func TestNATSComesBackOnTheSamePortWithItsStore(t *testing.T) {
	t.Parallel()
	server := StartNATS(t)
	conn := connectNATS(t, server)
	require.EqualValues(t, 1<<20, conn.MaxPayload(), "the default payload limit")
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "KEPT", Subjects: []string{"kept"}, Storage: jetstream.FileStorage,
	})
	require.NoError(t, err)
	_, err = js.Publish(t.Context(), "kept", []byte("x"))
	require.NoError(t, err)

	url, pid := server.URL(), server.PID()
	require.ErrorIs(t, server.Start(), errNATSRunning)
	require.NoError(t, server.Kill())
	require.Zero(t, server.PID())
	_, err = net.Dial("tcp", server.address())
	require.Error(t, err, "nothing listens after a kill")
	require.NoError(t, server.Kill(), "a second kill has nothing to do")

	require.NoError(t, server.Start())
	require.Equal(t, url, server.URL())
	require.NotEqual(t, pid, server.PID())
	js, err = jetstream.New(connectNATS(t, server))
	require.NoError(t, err)
	stream, err := js.Stream(t.Context(), "KEPT")
	require.NoError(t, err)
	require.EqualValues(t, 1, stream.CachedInfo().State.Msgs)

	require.NoError(t, server.Stop())
	require.Zero(t, server.PID())
}

func TestNATSStartSaysWhyItFailed(t *testing.T) {
	t.Parallel()
	server := StartNATS(t)
	require.NoError(t, server.Kill())
	stranger, err := net.Listen("tcp", server.address())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, stranger.Close()) })
	go func() {
		for { // it greets as a NATS server would
			conn, err := stranger.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("INFO {\"server_name\":\"stranger\",\"jetstream\":true}\r\n"))
			_ = conn.Close()
		}
	}()

	err = server.Start()
	require.ErrorContains(t, err, "port "+strconv.Itoa(server.port))
	require.ErrorContains(t, err, "address already in use", "the server's own log tells the cause")
	require.Zero(t, server.PID())
}

func TestNATSServersStandBesideEachOther(t *testing.T) {
	t.Parallel()
	one, two := StartNATS(t), StartNATS(t)
	require.NotEqual(t, one.URL(), two.URL())
	require.DirExists(t, one.dir)
	_, err := os.Stat(one.logPath())
	require.NoError(t, err)
	connectNATS(t, one)
	connectNATS(t, two)
}
