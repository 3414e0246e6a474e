// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package sqlstore is the index of a home in SQLite: which leaf, statement and
// bundle belong together, which statements speak of a subject, and results of
// stages that a later run may reuse.
//
// It is an index, never the truth: log and blobs recreate everything but stage
// results, whose loss costs time only.
package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite" // also registers the driver "sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/hallmark-sc/hallmark"
)

// Config names the database file.
type Config struct{ Path string }

// Store is an open index. It is safe for concurrent use by many processes.
type Store struct{ db *sql.DB }

const schemaVersion = 3

const schema = `
CREATE TABLE IF NOT EXISTS leaf (
	hash      BLOB PRIMARY KEY,
	at        INTEGER NOT NULL UNIQUE,
	statement TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS leaf_statement ON leaf (statement, at);
CREATE TABLE IF NOT EXISTS statement (
	digest    TEXT PRIMARY KEY,
	bundle    TEXT NOT NULL,
	predicate TEXT NOT NULL,
	signer    TEXT NOT NULL,
	at        INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS subject (
	value     TEXT NOT NULL,
	statement TEXT NOT NULL,
	PRIMARY KEY (value, statement)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stage (
	key       TEXT PRIMARY KEY,
	name      TEXT NOT NULL,
	result    BLOB NOT NULL,
	finished  INTEGER NOT NULL
) WITHOUT ROWID;
`

// Open opens or makes the database, which only its owner can read: it holds
// findings. A file that is no such database is not touched.
func Open(cfg Config) (*Store, error) {
	s, err := open(cfg)
	if err != nil {
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "opening index %s: %w", cfg.Path, err),
			"the index is made again from log and blobs: move "+cfg.Path+" and its -wal and -shm away, then hallmark log fsck --rebuild")
	}
	return s, nil
}

func open(cfg Config) (*Store, error) {
	if err := place0600(cfg.Path); err != nil {
		return nil, err
	}
	q := url.Values{"_pragma": {"journal_mode(WAL)", "synchronous(FULL)", "busy_timeout(30000)", "foreign_keys(1)"}, "_txlock": {"immediate"}}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: cfg.Path}).EscapedPath()+"?"+q.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(4)
	s := &Store{db: db}
	if err := untilFree(func() error { return s.migrate(context.Background()) }); err != nil {
		db.Close()
		return nil, err
	}
	return s, nil
}

// place0600 makes the file, or refuses what is no regular file. It never opens
// it for reading or writing: closing such a descriptor would drop the locks
// that another connection of this process holds on the file (POSIX, fcntl).
func place0600(path string) error {
	if err := unix.Mknod(path, unix.S_IFREG|0o600, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return hallmark.Errorf(hallmark.KindInvalid, "not a regular file")
	}
	if st.Mode&0o077 != 0 {
		return os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o600) // made by an earlier version; what SQLite makes beside it gets the same mode
	}
	return nil
}

// untilFree tries again while another process makes the same index: SQLite
// answers "locked" at once, without its own waiting, when two of them turn a
// new file to a write-ahead log.
func untilFree(try func() error) error {
	const patience = 30 * time.Second
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := try()
		var locked *sqlite.Error
		if !errors.As(err, &locked) || locked.Code()&0xff != sqlite3.SQLITE_BUSY || time.Now().After(end) {
			return err
		}
	}
}

func (s *Store) migrate(ctx context.Context) error {
	var v int
	if err := s.db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&v); err != nil {
		return err
	}
	switch {
	case v == schemaVersion:
		return nil
	case v > schemaVersion:
		return hallmark.Errorf(hallmark.KindInvalid, "index has schema version %d, this binary knows %d", v, schemaVersion)
	}
	return s.inTx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, schema+tokenSchema+runSchema); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", schemaVersion))
		return err
	})
}

// Close releases the database.
func (s *Store) Close() error { return s.db.Close() }

func (s *Store) inTx(ctx context.Context, fn func(tx *sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// place reads a position of the log out of a row, and column writes one.
func place(at int64) (uint64, error) {
	if at < 0 {
		return 0, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeLogIndexDiffers, "the index says that an entry stands at %d of the log", at)
	}
	return uint64(at), nil
}

func column(index uint64) (int64, error) {
	if index > math.MaxInt64 {
		return 0, hallmark.Errorf(hallmark.KindInvalid, "no log has an entry %d", index)
	}
	return int64(index), nil
}

// Leaf returns the index of a leaf.
func (s *Store) Leaf(ctx context.Context, leafHash []byte) (uint64, bool, error) {
	var at int64
	err := s.db.QueryRowContext(ctx, "SELECT at FROM leaf WHERE hash = ?", leafHash).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("looking up a leaf: %w", err)
	}
	index, err := place(at)
	return index, err == nil, err
}

// PutLeaf remembers a leaf; the first index wins. Another leaf at that index is
// an error: one of the two is not what the log holds.
func (s *Store) PutLeaf(ctx context.Context, leafHash []byte, index uint64, statement hallmark.Digest) error {
	at, err := column(index)
	if err != nil {
		return err
	}
	if _, err := s.db.ExecContext(ctx, "INSERT INTO leaf (hash, at, statement) VALUES (?, ?, ?) ON CONFLICT (hash) DO NOTHING",
		leafHash, at, string(statement)); err != nil {
		return fmt.Errorf("indexing leaf %d: %w", index, err)
	}
	return nil
}

// LeafOf returns the log index of a statement.
func (s *Store) LeafOf(ctx context.Context, statement hallmark.Digest) (uint64, bool, error) {
	var at int64
	err := s.db.QueryRowContext(ctx, "SELECT at FROM leaf WHERE statement = ? ORDER BY at LIMIT 1", string(statement)).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("looking up statement %s: %w", statement, err)
	}
	index, err := place(at)
	return index, err == nil, err
}

// Row is one statement in the index.
type Row struct {
	Statement hallmark.Digest
	Bundle    hallmark.Digest
	Predicate string
	Signer    string
	At        time.Time // signing time
	Subjects  []string  // "algorithm:value"
}

// PutStatement indexes a bundle and the subjects of its statement. A statement
// that is indexed already gets the new bundle: the old one was lost or is this.
func (s *Store) PutStatement(ctx context.Context, r Row) error {
	err := s.inTx(ctx, func(tx *sql.Tx) error { return putStatement(ctx, tx, r) })
	if err != nil {
		return fmt.Errorf("indexing statement %s: %w", r.Statement, err)
	}
	return nil
}

func putStatement(ctx context.Context, tx *sql.Tx, r Row) error {
	if _, err := tx.ExecContext(ctx, "INSERT INTO statement (digest, bundle, predicate, signer, at) VALUES (?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET bundle = excluded.bundle, predicate = excluded.predicate, signer = excluded.signer, at = excluded.at",
		string(r.Statement), string(r.Bundle), r.Predicate, r.Signer, r.At.UnixNano()); err != nil {
		return err
	}
	for _, v := range r.Subjects {
		if _, err := tx.ExecContext(ctx, "INSERT INTO subject (value, statement) VALUES (?, ?) ON CONFLICT DO NOTHING", v, string(r.Statement)); err != nil {
			return err
		}
	}
	return nil
}

// BundleOf returns the bundle of a statement.
func (s *Store) BundleOf(ctx context.Context, statement hallmark.Digest) (hallmark.Digest, bool, error) {
	var b string
	err := s.db.QueryRowContext(ctx, "SELECT bundle FROM statement WHERE digest = ?", string(statement)).Scan(&b)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("looking up statement %s: %w", statement, err)
	}
	return hallmark.Digest(b), true, nil
}

// Forget takes out all that the index has of a statement, as losing rows does; log
// and blobs keep it.
func (s *Store) Forget(ctx context.Context, statement hallmark.Digest) error {
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		for _, q := range []string{"DELETE FROM leaf WHERE statement = ?", "DELETE FROM subject WHERE statement = ?", "DELETE FROM statement WHERE digest = ?"} {
			if _, err := tx.ExecContext(ctx, q, string(statement)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forgetting statement %s: %w", statement, err)
	}
	return nil
}

// inOrder is the order of the log: signing times have seconds only.
const inOrder = " ORDER BY s.at, (SELECT max(l.at) FROM leaf l WHERE l.statement = s.digest), s.digest"

// Statements returns the statements about a subject ("algorithm:value"), or all
// for "", oldest first, and in the order of the log where times are equal.
func (s *Store) Statements(ctx context.Context, subject string) ([]Row, error) {
	if subject != "" {
		return s.list(ctx, "SELECT s.digest, s.bundle, s.predicate, s.signer, s.at FROM statement s JOIN subject j ON j.statement = s.digest WHERE j.value = ?"+inOrder, subject)
	}
	return s.list(ctx, "SELECT s.digest, s.bundle, s.predicate, s.signer, s.at FROM statement s"+inOrder)
}

// OfPredicate returns the statements of a predicate type, oldest first.
func (s *Store) OfPredicate(ctx context.Context, predicate string) ([]Row, error) {
	return s.list(ctx, "SELECT s.digest, s.bundle, s.predicate, s.signer, s.at FROM statement s WHERE s.predicate = ?"+inOrder, predicate)
}

func (s *Store) list(ctx context.Context, q string, args ...any) ([]Row, error) {
	rows, err := s.db.QueryContext(ctx, q, args...)
	if err != nil {
		return nil, fmt.Errorf("listing statements: %w", err)
	}
	defer rows.Close()
	var out []Row
	for rows.Next() {
		var r Row
		var at int64
		if err := rows.Scan(&r.Statement, &r.Bundle, &r.Predicate, &r.Signer, &at); err != nil {
			return nil, fmt.Errorf("listing statements: %w", err)
		}
		r.At = time.Unix(0, at).UTC()
		out = append(out, r)
	}
	return out, rows.Err()
}

// Save keeps the result of a stage under its key.
func (s *Store) Save(ctx context.Context, stage string, key hallmark.Digest, result []byte, at time.Time) error {
	_, err := s.db.ExecContext(ctx, "INSERT INTO stage (key, name, result, finished) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET name = excluded.name, result = excluded.result, finished = excluded.finished",
		string(key), stage, result, at.UnixNano())
	if err != nil {
		return fmt.Errorf("saving stage %s: %w", stage, err)
	}
	return nil
}

// Saved returns the result of a stage.
func (s *Store) Saved(ctx context.Context, stage string, key hallmark.Digest) ([]byte, time.Time, bool, error) {
	var b []byte
	var at int64
	err := s.db.QueryRowContext(ctx, "SELECT result, finished FROM stage WHERE key = ? AND name = ?", string(key), stage).Scan(&b, &at)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, time.Time{}, false, nil
	}
	if err != nil {
		return nil, time.Time{}, false, fmt.Errorf("looking up stage %s: %w", stage, err)
	}
	return b, time.Unix(0, at).UTC(), true, nil
}

// LeafRow is one leaf for Rebuild.
type LeafRow struct {
	Hash      []byte
	Index     uint64
	Statement hallmark.Digest
}

// Rebuild replaces all that comes from log and blobs, in one transaction. A leaf
// that stands in the log twice, as after a crash, is indexed at its first place.
func (s *Store) Rebuild(ctx context.Context, leaves []LeafRow, rows []Row) error {
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		for _, table := range []string{"leaf", "statement", "subject"} {
			if _, err := tx.ExecContext(ctx, "DELETE FROM "+table); err != nil {
				return err
			}
		}
		for _, l := range leaves {
			at, err := column(l.Index)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "INSERT INTO leaf (hash, at, statement) VALUES (?, ?, ?) ON CONFLICT (hash) DO NOTHING", l.Hash, at, string(l.Statement)); err != nil {
				return err
			}
		}
		for _, r := range rows {
			if err := putStatement(ctx, tx, r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("rebuilding the index: %w", err)
	}
	return nil
}
