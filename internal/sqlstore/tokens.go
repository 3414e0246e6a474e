// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
)

// tokenSchema is of sessions: what a lost index takes along, so that everybody
// signs in again.
const tokenSchema = `
CREATE TABLE IF NOT EXISTS token (
	digest     TEXT PRIMARY KEY,
	id         TEXT NOT NULL UNIQUE,
	principal  TEXT NOT NULL,
	method     TEXT NOT NULL,
	scopes     TEXT NOT NULL,
	repository TEXT NOT NULL,
	issued     INTEGER NOT NULL,
	expires    INTEGER NOT NULL,
	revoked    INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS challenge (
	nonce   TEXT PRIMARY KEY,
	expires INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS used_credential (
	digest  TEXT PRIMARY KEY,
	expires INTEGER NOT NULL
) WITHOUT ROWID;
`

// PutToken keeps a token until it expires.
func (s *Store) PutToken(ctx context.Context, t access.Token) error {
	var scopes []string
	for _, p := range t.Scopes {
		scopes = append(scopes, string(p))
	}
	_, err := s.db.ExecContext(ctx, "INSERT INTO token (digest, id, principal, method, scopes, repository, issued, expires) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
		string(t.Digest), t.ID, t.Principal, t.Method, strings.Join(scopes, " "), t.Repository, t.IssuedAt.UnixNano(), t.ExpiresAt.UnixNano())
	if err != nil {
		return fmt.Errorf("keeping token %s: %w", t.ID, err)
	}
	return nil
}

// TokenOf finds the token with a secret's digest. ok is false for one that never
// was; revoked tells one that was withdrawn.
func (s *Store) TokenOf(ctx context.Context, digest hallmark.Digest) (t access.Token, revoked, ok bool, err error) {
	var scopes string
	var issued, expires int64
	err = s.db.QueryRowContext(ctx, "SELECT id, principal, method, scopes, repository, issued, expires, revoked FROM token WHERE digest = ?", string(digest)).
		Scan(&t.ID, &t.Principal, &t.Method, &scopes, &t.Repository, &issued, &expires, &revoked)
	if errors.Is(err, sql.ErrNoRows) {
		return t, false, false, nil
	}
	if err != nil {
		return t, false, false, fmt.Errorf("looking up a token: %w", err)
	}
	for p := range strings.FieldsSeq(scopes) {
		t.Scopes = append(t.Scopes, access.Permission(p))
	}
	t.Digest, t.IssuedAt, t.ExpiresAt = digest, time.Unix(0, issued).UTC(), time.Unix(0, expires).UTC()
	return t, revoked, true, nil
}

// RevokeToken withdraws a token by its id.
func (s *Store) RevokeToken(ctx context.Context, id string) (found bool, err error) {
	res, err := s.db.ExecContext(ctx, "UPDATE token SET revoked = 1 WHERE id = ?", id)
	if err != nil {
		return false, fmt.Errorf("withdrawing token %s: %w", id, err)
	}
	n, err := res.RowsAffected()
	return n > 0, err
}

// PutChallenge keeps a nonce that may be answered once, and forgets old ones.
func (s *Store) PutChallenge(ctx context.Context, nonce string, expires, now time.Time) error {
	return s.inTx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM challenge WHERE expires < ?", now.UnixNano()); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO challenge (nonce, expires) VALUES (?, ?)", nonce, expires.UnixNano())
		return err
	})
}

// TakeChallenge uses a nonce up; ok is false for one that is unknown, used or old.
func (s *Store) TakeChallenge(ctx context.Context, nonce string, now time.Time) (ok bool, err error) {
	res, err := s.db.ExecContext(ctx, "DELETE FROM challenge WHERE nonce = ? AND expires >= ?", nonce, now.UnixNano())
	if err != nil {
		return false, fmt.Errorf("taking a challenge: %w", err)
	}
	n, err := res.RowsAffected()
	return n == 1, err
}

// UseCredential notes that a credential was used, which is good once, until it
// would not be taken any more; used tells that it was before.
func (s *Store) UseCredential(ctx context.Context, digest string, expires, now time.Time) (used bool, err error) {
	err = s.inTx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM used_credential WHERE expires < ?", now.UnixNano()); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, "INSERT INTO used_credential (digest, expires) VALUES (?, ?) ON CONFLICT DO NOTHING", digest, expires.UnixNano())
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		used = n == 0
		return err
	})
	if err != nil {
		return false, fmt.Errorf("noting that a credential was used: %w", err)
	}
	return used, nil
}
