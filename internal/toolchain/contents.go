// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"bytes"
	"crypto/md5"  //nolint:gosec // what dpkg declares
	"crypto/sha1" //nolint:gosec // what apk declares
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
)

// Content is what is known of the bytes that have a SHA-256 digest.
type Content struct {
	MD5  [md5.Size]byte
	SHA1 [sha1.Size]byte
	Code bool // compiled: ELF of any kind, or an archive of it
}

// ErrOtherContent says that a file does not hold the bytes that it was asked for.
var ErrOtherContent = errors.New("the file holds other bytes now")

// Contents knows contents by their SHA-256 digests, so that a file of the platform
// is hashed once more in all, not in every build. It is safe for concurrent use.
type Contents struct {
	mu    sync.Mutex
	path  string // empty: nothing is kept
	known map[[sha256.Size]byte]Content
	fresh int
}

// The file: the magic, the SHA-256 of the rest, and records of fixed size.
const (
	contentsMagic = "hallmark contents 1\n"
	contentsSize  = sha256.Size + md5.Size + sha1.Size + 1
	mostContents  = 1 << 19 // of 69 bytes
)

// OpenContents reads what was known. A file that is not there, or not whole, is
// empty: everything is hashed again. One that somebody else could have written is
// an error.
func OpenContents(path string) (*Contents, error) {
	c := &Contents{path: path, known: map[[sha256.Size]byte]Content{}}
	if path == "" {
		return c, nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading known contents: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading known contents: %w", err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != os.Geteuid() || st.Mode().Perm()&0o022 != 0 || !st.Mode().IsRegular() {
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "reading known contents: others can write %s", path), "remove it: it is made again")
	}
	b, err := io.ReadAll(io.LimitReader(f, mostContents*contentsSize+1024))
	if err != nil {
		return nil, fmt.Errorf("reading known contents: %w", err)
	}
	c.decode(b)
	return c, nil
}

func (c *Contents) decode(b []byte) {
	rest, ok := bytes.CutPrefix(b, []byte(contentsMagic))
	if !ok || len(rest) < sha256.Size {
		return
	}
	records := rest[sha256.Size:]
	if sha256.Sum256(records) != [sha256.Size]byte(rest[:sha256.Size]) || len(records)%contentsSize != 0 {
		return
	}
	for ; len(records) > 0; records = records[contentsSize:] {
		r := records[sha256.Size:]
		c.known[[sha256.Size]byte(records)] = Content{MD5: [md5.Size]byte(r), SHA1: [sha1.Size]byte(r[md5.Size:]), Code: r[md5.Size+sha1.Size] == 1}
	}
}

func (c *Contents) encode() []byte {
	var records []byte
	for d, k := range c.known {
		if len(records) >= mostContents*contentsSize {
			break
		}
		records = append(append(append(records, d[:]...), k.MD5[:]...), k.SHA1[:]...)
		if k.Code {
			records = append(records, 1)
		} else {
			records = append(records, 0)
		}
	}
	sum := sha256.Sum256(records)
	return append(append([]byte(contentsMagic), sum[:]...), records...)
}

// Of returns what is known of a content. Where nothing is, it reads the file that
// is said to hold it; ErrOtherContent is the error where the file does not.
func (c *Contents) Of(d hallmark.Digest, open func() (fs.File, error)) (Content, error) {
	var key [sha256.Size]byte
	if err := d.Check(); err != nil {
		return Content{}, err
	}
	if _, err := hex.Decode(key[:], []byte(d.Hex())); err != nil {
		return Content{}, fmt.Errorf("reading digest %s: %w", d, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if k, ok := c.known[key]; ok {
		return k, nil
	}
	f, err := open()
	if err != nil {
		return Content{}, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return Content{}, errors.Join(ErrOtherContent, err)
	}
	sum, m, s, head := sha256.New(), md5.New(), sha1.New(), &first{}
	if _, err := io.Copy(io.MultiWriter(sum, m, s, head), f); err != nil {
		return Content{}, err
	}
	if [sha256.Size]byte(sum.Sum(nil)) != key {
		return Content{}, ErrOtherContent
	}
	k := Content{MD5: [md5.Size]byte(m.Sum(nil)), SHA1: [sha1.Size]byte(s.Sum(nil)), Code: IsCode(head.b)}
	c.known[key] = k
	c.fresh++
	return k, nil
}

// Save writes what was found anew, for the next build. Of two that write at the
// same time one wins; the other's files are hashed again.
func (c *Contents) Save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.path == "" || c.fresh == 0 {
		return nil
	}
	c.fresh = 0
	if err := (durable.Disk{}).Replace(c.path, c.encode(), 0o600); err != nil {
		return fmt.Errorf("writing known contents: %w", err)
	}
	return nil
}

// first keeps the first bytes that are written to it.
type first struct{ b []byte }

func (f *first) Write(p []byte) (int, error) {
	if room := codeMagic - len(f.b); room > 0 {
		f.b = append(f.b, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

// codeMagic is how many bytes tell compiled code.
const codeMagic = 8

// IsCode reports whether a file that begins so is compiled code which a program
// loads, or a linker puts into one: ELF of any kind, or an archive of such files.
func IsCode(head []byte) bool {
	for _, magic := range []string{"\x7fELF", "!<arch>\n", "!<thin>\n"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	return false
}
