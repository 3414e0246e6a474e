// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed" // of the schema
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/hallmark-sc/hallmark"
)

// ServerFile is the configuration of hallmark serve. It holds nothing that
// decides: who may do what stands in the signed policy.
type ServerFile struct {
	Listen  string        `yaml:"listen"`  // address and port
	Metrics string        `yaml:"metrics"` // address and port of this machine, or none
	Names   []string      `yaml:"names"`   // DNS names and addresses that clients use
	TLS     ServerTLS     `yaml:"tls"`
	Limits  ServerLimit   `yaml:"limits"`
	Alerts  []ServerAlert `yaml:"alerts"`
	Builds  ServerBuild   `yaml:"builds"`
	Signer  ServerSigner  `yaml:"signer"`
	maximum int64
}

// ServerTLS names a certificate of the operator's own; without, the server makes
// an authority and a certificate.
type ServerTLS struct {
	Certificate string `yaml:"certificate"` // PEM file, with its chain
	Key         string `yaml:"key"`         // PEM file
}

// ServerLimit bounds what a client may ask of the server.
type ServerLimit struct {
	Push       string `yaml:"push"`       // size of one push, such as 1GiB
	Pushes     int    `yaml:"pushes"`     // that are judged at the same time
	PushesEach int    `yaml:"pushesEach"` // of one principal
	Wait       string `yaml:"wait"`       // for a turn, such as 30s
}

// DefaultServerFile is what holds where the configuration says nothing.
func DefaultServerFile() ServerFile {
	return ServerFile{Listen: "127.0.0.1:8443", Names: []string{"localhost", "127.0.0.1"}, Metrics: "none", Limits: ServerLimit{Push: "1GiB", Pushes: 16, PushesEach: 4, Wait: "1m"}, Builds: defaultBuilds(), maximum: 1 << 30}
}

//go:embed serve.schema.json
var serverSchema []byte

// ServerSchema is the JSON Schema (draft 2020-12) of a server's configuration.
func ServerSchema() []byte { return bytes.Clone(serverSchema) }

// ReadServerFile reads a configuration strictly; errors name file and line.
func ReadServerFile(path string) (ServerFile, error) {
	f := DefaultServerFile()
	b, err := readLimited(path, 1<<20)
	if err != nil {
		return f, hallmark.Errorf(hallmark.KindInvalid, "reading the configuration: %w", err)
	}
	const hint = "hallmark schema serve prints what there is"
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err = dec.Decode(&f); err == nil {
		if err = dec.Decode(new(yaml.Node)); err == nil {
			err = errors.New("want one document")
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return f, hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "%s: %s", path, yamlText.Replace(err.Error())), hint)
	}
	var root yaml.Node
	if err := yaml.Unmarshal(b, &root); err != nil {
		return f, hallmark.Errorf(hallmark.KindInvalid, "%s: %w", path, err)
	}
	return f, hallmark.WithHint(f.check(func(field string) string {
		return fmt.Sprintf("%s: line %d: %s", path, lineOf(&root, strings.Split(field, ".")), field)
	}), hint)
}

var yamlText = strings.NewReplacer("yaml: ", "", "unmarshal errors:\n  ", "", "\n  ", "; ", " in type app.ServerFile", "", " in type app.ServerTLS", "", " in type app.ServerLimit", "", " in type app.ServerAlert", "", " in type app.ServerBuild", "", " in type app.ServerSecret", "", " in type app.ServerSigner", "")

// lineOf is where a field stands, or what it would stand in.
func lineOf(n *yaml.Node, field []string) int {
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		return lineOf(n.Content[0], field)
	}
	if i, err := strconv.Atoi(append(field, "")[0]); n.Kind == yaml.SequenceNode && err == nil && i >= 0 && i < len(n.Content) {
		return lineOf(n.Content[i], field[1:])
	}
	if n.Kind == yaml.MappingNode && len(field) > 0 {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == field[0] {
				return lineOf(n.Content[i+1], field[1:])
			}
		}
	}
	return max(n.Line, 1)
}

// Check reports what is wrong with a configuration, by its field.
func (f *ServerFile) Check(name string) error {
	return f.check(func(field string) string { return name + ": " + field })
}

func (f *ServerFile) check(where func(field string) string) error {
	bad := func(field, format string, args ...any) error {
		return hallmark.Errorf(hallmark.KindInvalid, "%s: %s", where(field), fmt.Sprintf(format, args...))
	}
	if host, port, err := net.SplitHostPort(f.Listen); err != nil || host == "" || port == "" {
		return bad("listen", "%.80q: want ADDRESS:PORT", f.Listen)
	}
	if len(f.Names) == 0 || slices.Contains(f.Names, "") {
		return bad("names", "want the names that clients use")
	}
	if (f.TLS.Certificate == "") != (f.TLS.Key == "") {
		return bad("tls", "want certificate and key, or neither")
	}
	if err := f.Builds.check(bad); err != nil {
		return err
	}
	if host, _, err := net.SplitHostPort(f.Metrics); f.Metrics != "none" && (err != nil || !net.ParseIP(host).IsLoopback()) {
		return bad("metrics", "%.80q: want none, or ADDRESS:PORT with an address of this machine alone, such as 127.0.0.1:9100", f.Metrics)
	}
	if f.Limits.Pushes < 1 || f.Limits.Pushes > maxPushes {
		return bad("limits.pushes", "%d: want 1 to %d", f.Limits.Pushes, maxPushes)
	}
	if f.Limits.PushesEach < 1 || f.Limits.PushesEach > f.Limits.Pushes {
		return bad("limits.pushesEach", "%d: want 1 to limits.pushes, which is %d", f.Limits.PushesEach, f.Limits.Pushes)
	}
	if d, err := time.ParseDuration(f.Limits.Wait); err != nil || d <= 0 || d > maxWait {
		return bad("limits.wait", "%.40q: want a duration up to %s, such as 30s", f.Limits.Wait, maxWait)
	}
	if f.Signer.Socket != "" && (f.Signer.User != "" || !filepath.IsAbs(f.Signer.Socket)) {
		return bad("signer", "want the absolute path of a socket, or the user whom the server starts its signer as")
	}
	for i, a := range f.Alerts {
		if field, why := checkAlert(a); why != "" {
			return bad(fmt.Sprintf("alerts.%d.%s", i, field), "%s", why)
		}
	}
	for suffix, unit := range map[string]int64{"MiB": 1 << 20, "GiB": 1 << 30} {
		n, err := strconv.ParseInt(strings.TrimSuffix(f.Limits.Push, suffix), 10, 64)
		if err == nil && n > 0 && n < 10_000_000 && strconv.FormatInt(n, 10)+suffix == f.Limits.Push {
			f.maximum = n * unit
			return nil
		}
	}
	return bad("limits.push", "%.40q: want a size such as 500MiB or 1GiB", f.Limits.Push)
}

// What a configuration may ask for at most.
const (
	maxPushes = 1000
	maxWait   = 10 * time.Minute
)

// patience is how long a push waits for its turn.
func (f ServerFile) patience() time.Duration {
	d, err := time.ParseDuration(f.Limits.Wait)
	if err != nil {
		return 0 // check refused it
	}
	return d
}

func (f ServerFile) maxPush() int64 { return f.maximum }

// Life of a certificate that the server makes, and how long before its end another
// takes its place.
const (
	leafLife  = 90 * 24 * time.Hour
	leafAhead = 30 * 24 * time.Hour
)

// shown is what the server shows to clients. One of its own making is made anew
// before it ends, by the same authority, which is the one that clients trust.
type shown struct {
	make func() (tls.Certificate, time.Time, error)

	mu   sync.Mutex
	cert *tls.Certificate
	end  time.Time
}

func (c *shown) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cert != nil && (c.end.IsZero() || now().Before(c.end.Add(-leafAhead))) {
		return c.cert, nil
	}
	cert, end, err := c.make()
	if err != nil {
		if c.cert != nil && now().Before(c.end) {
			return c.cert, nil // good for a while yet, and tried again with the next client
		}
		return nil, err
	}
	c.cert, c.end = &cert, end
	return c.cert, nil
}

// certificate is what the server shows, and the file that clients trust.
func (s *Server) certificate() (*shown, string, error) {
	if s.file.TLS.Certificate != "" {
		cert, err := tls.LoadX509KeyPair(s.file.TLS.Certificate, s.file.TLS.Key)
		if err != nil {
			return nil, "", hallmark.Errorf(hallmark.KindInvalid, "reading tls.certificate and tls.key: %w", err)
		}
		return &shown{cert: &cert}, s.file.TLS.Certificate, nil
	}
	dir := s.home.TLS()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", hallmark.Errorf(hallmark.KindInvalid, "making %s: %w", dir, err)
	}
	caFile, caKey := filepath.Join(dir, "authority.pem"), filepath.Join(dir, "authority.key")
	ca, key, err := loadAuthority(caFile, caKey)
	if errors.Is(err, fs.ErrNotExist) {
		ca, key, err = makeAuthority(caFile, caKey)
	}
	if err != nil {
		return nil, "", fmt.Errorf("preparing the authority of TLS: %w", err)
	}
	c := &shown{make: func() (tls.Certificate, time.Time, error) { return makeLeaf(ca, key, s.file.Names) }}
	_, err = c.get(nil)
	return c, caFile, err
}

func makeLeaf(ca *x509.Certificate, key *ecdsa.PrivateKey, names []string) (tls.Certificate, time.Time, error) {
	leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, time.Time{}, hallmark.Errorf(hallmark.KindInternal, "making a TLS key: %w", err)
	}
	t := template("hallmark serve", leafLife)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca, leaf.Public(), key)
	if err != nil {
		return tls.Certificate{}, time.Time{}, hallmark.Errorf(hallmark.KindInternal, "making a TLS certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der, ca.Raw}, PrivateKey: leaf}, t.NotAfter, nil
}

func template(name string, life time.Duration) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		serial = big.NewInt(now().UnixNano())
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now().Add(-5 * time.Minute), NotAfter: now().Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
}

func makeAuthority(certFile, keyFile string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := template("hallmark TLS authority", 3650*24*time.Hour)
	t.IsCA, t.MaxPathLenZero, t.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	if err := writeDurable(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600); err != nil {
		return nil, nil, err
	}
	if err := writeDurable(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, nil, err
	}
	return loadAuthority(certFile, keyFile)
}

func loadAuthority(certFile, keyFile string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	c, err := os.ReadFile(certFile)
	if err != nil {
		return nil, nil, err
	}
	k, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, nil, err
	}
	cb, _ := pem.Decode(c)
	kb, _ := pem.Decode(k)
	if cb == nil || kb == nil {
		return nil, nil, hallmark.Errorf(hallmark.KindInvalid, "%s or %s is no PEM file", certFile, keyFile)
	}
	cert, err := x509.ParseCertificate(cb.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("reading %s: %w", certFile, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(kb.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("reading %s: %w", keyFile, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || !ec.PublicKey.Equal(cert.PublicKey) {
		return nil, nil, hallmark.Errorf(hallmark.KindInvalid, "%s is not the key of %s", keyFile, certFile)
	}
	return cert, ec, nil
}
