//go:build !plugwire_notls

package plugwire

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"
)

// expandLabel is HKDF-Expand-Label of RFC 8446, section 7.1.
func expandLabel(t testing.TB, secret []byte, label string, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len("tls13 ")+len(label)))
	info = append(append(info, "tls13 "+label...), 0)
	b, err := hkdf.Expand(sha256.New, secret, string(info), n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// T18: a peer asks for a new key again and again (KeyUpdate, 27 bytes each) and sends
// next to nothing else. crypto/tls answers each, and the answers wait until this side
// has something to send.
func TestT18KeyUpdatesAreBounded(t *testing.T) {
	const updates = 5000
	dialled, accepted := unixPair(t)
	got := make(chan *Conn, 1)
	s := &Server{Mux: NewMux(), Config: testConfig(&Config{TLS: testTLS(), OnConn: func(c *Conn) { got <- c }})}
	go s.ServeConn(context.Background(), accepted)
	defer s.Close()
	var keys bytes.Buffer
	cfg := tlsConfigOf(t, testTLS(), true, "").Clone()
	cfg.KeyLogWriter = &keys
	client := tls.Client(dialled, cfg)
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if id := client.ConnectionState().CipherSuite; id != tls.TLS_AES_128_GCM_SHA256 {
		t.Skip(tls.CipherSuiteName(id))
	}
	client.Write(helloBytes(adversaryHello())) // the first record
	c := receive(t, "connection", got)
	go func() { // and reads all that comes
		b := make([]byte, 64<<10)
		for {
			if _, err := dialled.Read(b); err != nil {
				return
			}
		}
	}()
	var secret []byte
	for _, line := range strings.Split(keys.String(), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, _ = hex.DecodeString(f[2])
		}
	}
	seq := uint64(1)
	var batch []byte
	record := func(inner ...byte) {
		block, _ := aes.NewCipher(expandLabel(t, secret, "key", 16))
		aead, _ := cipher.NewGCM(block)
		nonce := expandLabel(t, secret, "iv", 12)
		for j := range 8 {
			nonce[4+j] ^= byte(seq >> (56 - 8*j))
		}
		head := []byte{23, 3, 3, 0, byte(len(inner) + 16)}
		batch = append(batch, aead.Seal(head, nonce, inner, head)...)
		seq++
	}
	// one frame that may be skipped, a byte at a time: crypto/tls takes 16 KeyUpdates in a row
	plain := frame(FrameSkippable|0x7f, 0, 0, 0, make([]byte, 60000))
	for i := range updates {
		if i%15 == 0 {
			record(plain[0], 23)
			plain = plain[1:]
		}
		record(24, 0, 0, 1, 1, 22)
		secret, seq = expandLabel(t, secret, "traffic upd", 32), 0
		if i%100 == 99 {
			if _, err := dialled.Write(batch); err != nil {
				break // it has ended
			}
			batch = batch[:0]
		}
	}
	receive(t, "the end", c.Done())
	if err := c.Err(); err == nil || !strings.Contains(err.Error(), "too many KeyUpdates") {
		t.Errorf("ended with %v", err)
	}
	tc := c.sealer.(*tlsConn)
	tc.mu.Lock()
	defer tc.mu.Unlock()
	if n := len(tc.out); n > maxAnswers+1024 {
		t.Errorf("%d bytes of answers were held", n)
	}
}
