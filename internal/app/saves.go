// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

// sealedSaves implements pipeline.Saves over a store that anyone may have
// written to: a result counts only with the seal of this home's keys, over all
// that says what it is a result of. One without is as good as none. Keys under a
// passphrase so protect what a later run would sign without doing it again.
type sealedSaves struct {
	saves pipeline.Saves
	seal  func(purpose string, b []byte) ([]byte, error)
}

func (s sealedSaves) code(stage string, key hallmark.Digest, result []byte, at time.Time) ([]byte, error) {
	var b []byte
	for _, part := range [][]byte{[]byte(stage), []byte(key), result} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(part)))
		b = append(b, part...)
	}
	return s.seal("saved results", binary.BigEndian.AppendUint64(b, uint64(at.UnixNano())))
}

// Save implements pipeline.Saves.
func (s sealedSaves) Save(ctx context.Context, stage string, key hallmark.Digest, result []byte, at time.Time) error {
	code, err := s.code(stage, key, result, at)
	if err != nil {
		return fmt.Errorf("sealing a result: %w", err)
	}
	return s.saves.Save(ctx, stage, key, append(code, result...), at)
}

// Saved implements pipeline.Saves.
func (s sealedSaves) Saved(ctx context.Context, stage string, key hallmark.Digest) ([]byte, time.Time, bool, error) {
	b, at, ok, err := s.saves.Saved(ctx, stage, key)
	if err != nil || !ok || len(b) < sha256.Size {
		return nil, time.Time{}, false, err
	}
	code, err := s.code(stage, key, b[sha256.Size:], at)
	if err != nil {
		return nil, time.Time{}, false, fmt.Errorf("checking the seal of a result: %w", err)
	}
	if !hmac.Equal(code, b[:sha256.Size]) {
		return nil, time.Time{}, false, nil
	}
	return b[sha256.Size:], at, true, nil
}
