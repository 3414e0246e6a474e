// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
)

// fetchRecord is one reading of a repository, or a refusal of that or of a
// credential.
type fetchRecord struct {
	Number     uint64          `json:"number"`            // a gap is a finding
	What       string          `json:"what,omitempty"`    // credentialRefused, or "" of a fetch
	Address    string          `json:"address,omitempty"` // where a refused credential came from
	LeftOut    int             `json:"leftOut,omitempty"` // others of it before this one
	Principal  string          `json:"principal"`
	Token      string          `json:"token"`
	Method     string          `json:"method"`
	Repository string          `json:"repository"`
	Effect     hallmark.Effect `json:"effect"`
	Grant      string          `json:"grant,omitempty"`
	Code       hallmark.Code   `json:"code,omitempty"`
	Policy     hallmark.Digest `json:"policy"`
	On         time.Time       `json:"on"`
}

// spool keeps records of fetches: each is on disk before anything is served, and
// many are signed together, since a reader should not wait for the log.
type spool struct {
	dir  string
	seal func(ctx context.Context, first, last uint64, lines []byte) error

	mu    sync.Mutex
	file  *os.File
	next  uint64
	lines int
	timer *time.Timer
}

// When a batch is signed: after so many records, or so long after the first.
const (
	sealAfter = 500
	sealEvery = time.Minute
)

const spoolFile = "open.jsonl"

// openSpool continues where a server ended, killed or not.
func openSpool(dir string, seal func(context.Context, uint64, uint64, []byte) error) (*spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "making %s: %w", dir, err)
	}
	s := &spool{dir: dir, seal: seal, next: 1}
	b, err := os.ReadFile(filepath.Join(dir, "next"))
	if err == nil {
		if s.next, err = strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64); err != nil || s.next == 0 {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "%s/next holds no number", dir)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading %s: %w", dir, err)
	}
	path := filepath.Join(dir, spoolFile)
	whole, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading %s: %w", path, err)
	}
	// A record that was cut off was of nobody who was served.
	whole = whole[:bytes.LastIndexByte(whole, '\n')+1]
	in, start := bufio.NewScanner(bytes.NewReader(whole)), s.next
	for in.Scan() {
		var r fetchRecord
		err := json.Unmarshal(in.Bytes(), &r)
		if err == nil && r.Number > 0 && r.Number < start { // signed, and killed before the file was emptied
			continue
		}
		if err != nil || r.Number != s.next {
			return nil, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeEvidenceMissing, "%s: record %d is missing or can't be read", path, s.next)
		}
		s.next++
		s.lines++
	}
	if s.lines == 0 {
		whole = nil
	}
	if s.file, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "opening %s: %w", path, err)
	}
	if err := s.file.Truncate(int64(len(whole))); err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "opening %s: %w", path, err)
	}
	if _, err := s.file.Seek(0, 2); err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "opening %s: %w", path, err)
	}
	return s, nil
}

// add makes a record durable.
func (s *spool) add(ctx context.Context, r fetchRecord) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Number = s.next
	b, err := json.Marshal(r)
	if err != nil {
		return hallmark.Errorf(hallmark.KindInternal, "recording a fetch: %w", err)
	}
	end, err := s.file.Seek(0, io.SeekEnd)
	if err != nil {
		return hallmark.Errorf(hallmark.KindUnavailable, "recording a fetch: %w", err)
	}
	if _, err = s.file.Write(append(b, '\n')); err == nil {
		err = s.file.Sync()
	}
	if err != nil {
		// What was written of it must not stand before the next one: it has its number.
		_, serr := s.file.Seek(end, io.SeekStart)
		err = errors.Join(err, s.file.Truncate(end), serr)
		return hallmark.Errorf(hallmark.KindUnavailable, "recording a fetch: %w", err)
	}
	s.next++
	s.lines++
	if s.lines >= sealAfter {
		return s.sealed(ctx)
	}
	if s.timer == nil {
		s.timer = time.AfterFunc(sealEvery, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.timer = nil
			s.sealed(context.Background()) // what fails stays, and is tried again with the next
		})
	}
	return nil
}

// sealed signs what is there and begins a new batch. The caller holds the lock.
func (s *spool) sealed(ctx context.Context) error {
	if s.lines == 0 {
		return nil
	}
	path := filepath.Join(s.dir, spoolFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return hallmark.Errorf(hallmark.KindUnavailable, "reading %s: %w", path, err)
	}
	if err := s.seal(ctx, s.next-uint64(s.lines), s.next-1, b); err != nil {
		return err
	}
	// Killed between the two, the same batch is signed again, which adds nothing.
	if err := writeDurable(filepath.Join(s.dir, "next"), fmt.Appendf(nil, "%d\n", s.next), 0o600); err != nil {
		return err
	}
	if err := s.file.Truncate(0); err != nil {
		return hallmark.Errorf(hallmark.KindUnavailable, "beginning a batch: %w", err)
	}
	if _, err := s.file.Seek(0, 0); err != nil {
		return hallmark.Errorf(hallmark.KindUnavailable, "beginning a batch: %w", err)
	}
	s.lines = 0
	return s.file.Sync()
}

func (s *spool) close(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
	}
	return errors.Join(s.sealed(ctx), s.file.Close())
}

// sealFetches keeps a batch of records as a blob and signs its digest.
func (s *Server) sealFetches(ctx context.Context, first, last uint64, lines []byte) error {
	digest, err := s.home.stores.blobs.Put(ctx, lines)
	if err != nil {
		return fmt.Errorf("keeping fetch records: %w", err)
	}
	var newest fetchRecord
	all := bytes.Split(bytes.TrimSpace(lines), []byte{'\n'})
	if err := json.Unmarshal(all[len(all)-1], &newest); err != nil {
		return hallmark.Errorf(hallmark.KindInternal, "reading fetch records: %w", err)
	}
	st, err := attest.AccessRecord(intoto.AccessRecord{
		Action: "repository.read", Actor: hallmark.Principal{Name: "hallmark", Method: "local"}, Resource: "fetches:" + s.home.id.origin(), Effect: hallmark.Allow,
		On: newest.On, Policy: newest.Policy, Details: map[string]string{"first": strconv.FormatUint(first, 10), "last": strconv.FormatUint(last, 10), "records": string(digest)},
	})
	if err != nil {
		return err
	}
	_, err = s.signer.sign(ctx, sign.Gate, st, nil)
	return err
}
