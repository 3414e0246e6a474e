// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
)

// withdrawAction is the logged statement that ends a token before its time.
const withdrawAction = "token.withdraw"

// tokenKey is where the log has what was said of a token.
func tokenKey(id string) string { return string(hallmark.DigestOf([]byte("token:" + id))) }

// tokenRows counts the statements about a token that the log has.
func (h *Home) tokenRows(ctx context.Context, id string) (int, error) {
	_, found, err := h.journal.find(ctx, h, keyOf(aboutKey, tokenKey(id)))
	return len(found), err
}

// tokenRecords are the logged statements about a token. That it is withdrawn counts
// by the words of the log alone; that it was issued counts where the evidence of it
// is kept and verifies.
func (h *Home) tokenRecords(ctx context.Context, id string) ([]intoto.AccessRecord, error) {
	all, err := h.logged(ctx, aboutKey, tokenKey(id))
	if err != nil {
		return nil, err
	}
	var out []intoto.AccessRecord
	for _, l := range all {
		if l.statement.PredicateType != intoto.PredicateAccess {
			continue
		}
		r, err := intoto.DecodePredicate[intoto.AccessRecord](l.statement)
		if err != nil {
			return nil, err
		}
		if r.Resource != "token:"+id || r.Effect != hallmark.Allow {
			continue
		}
		if r.Action != withdrawAction {
			if ok, err := h.kept(ctx, l); err != nil {
				return nil, err
			} else if !ok {
				continue
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// RevokeToken withdraws a token by its id. That it is withdrawn is logged first,
// and it is the log that says so from then on: a row that is put back, or a mark
// that is taken away, brings no token back.
func RevokeToken(ctx context.Context, home, id string, pass []byte) error {
	h, err := OpenHome(home, pass)
	if err != nil {
		return err
	}
	defer h.Close()
	records, err := h.tokenRecords(ctx, id)
	if err != nil {
		return err
	}
	if len(records) == 0 {
		return hallmark.Errorf(hallmark.KindNotFound, "there is no token %.80q", id)
	}
	if !withdrawn(records) {
		by := operator()
		by.Method = byOperator
		st, err := attest.AccessRecord(intoto.AccessRecord{Action: withdrawAction, Actor: by, Resource: "token:" + id, Effect: hallmark.Allow, On: now(), Policy: h.policy.Digest(),
			Details: map[string]string{"principal": records[0].Details["principal"]}})
		if err != nil {
			return err
		}
		signer := newSigner(h.Layout, h.id, h.keys, h.stores)
		defer signer.close()
		if _, err := signer.sign(ctx, sign.Gate, st, nil); err != nil {
			return err
		}
	}
	_, err = h.stores.index.RevokeToken(ctx, id)
	return err
}

func withdrawn(records []intoto.AccessRecord) bool {
	for _, r := range records {
		if r.Action == withdrawAction {
			return true
		}
	}
	return false
}
