// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/transparency-dev/tessera/api"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/sqlstore"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/verify"
)

// at19 is "erase or alter the evidence". The attacker writes to the disk of the
// home and holds none of its keys, but for the last cases, where the home itself
// is made to sign for him.
func at19() []Case {
	return []Case{
		{
			Attack: "AT-19", Letter: "a", Does: "an entry of the log is edited: it stands for another statement",
			Control: "fsck recomputes the tree from its entries", Stops: hallmark.CodeLogEntryAltered,
			Residual: "an operator who signs a new tree with the log's key and rewrites the guard", attack: auditCase(treeCheck, editEntry),
		},
		{
			Attack: "AT-19", Letter: "b", Does: "the newest entries are cut off, under an older signed checkpoint",
			Control: "fork guard: the newest signed head is remembered elsewhere", Stops: hallmark.CodeLogTruncated,
			Residual: "guard and log restored together, from backups of one age", attack: auditCase(headCheck, truncate),
		},
		{
			Attack: "AT-19", Letter: "c", Does: "the whole store is replaced by an older copy, and grows another way",
			Control: "fork guard: nothing is appended to a log that is behind it", Stops: hallmark.CodeLogTruncated,
			Residual: "guard, log, blobs and index restored together", attack: olderCopy,
		},
		{
			Attack: "AT-19", Letter: "d", Does: "two entries of the log change places",
			Control: "fsck recomputes the tree from its entries", Stops: hallmark.CodeLogEntryAltered,
			Residual: "an operator who signs a new tree with the log's key and rewrites the guard", attack: auditCase(treeCheck, reorder),
		},
		{
			Attack: "AT-19", Letter: "e", Does: "the payload of a logged statement is deleted",
			Control: "fsck asks for the payload of every entry", Stops: hallmark.CodeEvidenceMissing,
			Residual: "a deleted bundle is not missed: signature and key stand in the log, its timestamp is lost", attack: auditCase(payloadCheck, deletePayload),
		},
		{
			Attack: "AT-19", Letter: "f", Does: "rows of the index are edited, so that a statement is not found any more",
			Control: "the index is made again from log and blobs", Stops: hallmark.CodeLogIndexRebuilt,
			Residual: "until fsck --rebuild, explain and report show what the edited rows say", attack: editIndex,
		},
		{
			Attack: "AT-19", Letter: "g", Does: "the log is replaced by an older copy, and the fork guard is deleted",
			Control: "a log with entries and without a guard is not opened", Stops: hallmark.CodeLogForked,
			Residual: "the guard replaced by one of the same age as the copy", attack: deleteGuard,
		},
		{
			Attack: "AT-19", Letter: "h", Does: "a reader who has seen the log is shown another tree of the same size",
			Control: "verifiers remember the largest checkpoint", Stops: hallmark.CodeLogSplitView,
			Residual: "two readers who never compare: there are no witnesses yet", attack: splitView,
		},
	}
}

// history is a home with entries, an older copy of it, and what the later
// entries are. Cases work on copies.
type history struct {
	now, before string // homes
	size        int64  // of the log of before
	ledger      []hallmark.Digest
	last        []byte // newest bundle
}

func (g *ground) history(ctx context.Context) (history, error) {
	return keep(g, "history", func() (h history, err error) {
		if h.now, err = g.copyHome(g.home.Home); err != nil {
			return h, err
		}
		if h.before, err = g.copyHome(h.now); err != nil {
			return h, err
		}
		l, err := openLedger(ctx, h.now, nil)
		if err != nil {
			return h, err
		}
		defer func() { err = errors.Join(err, l.close()) }()
		for _, what := range []string{"first", "second", "third"} {
			b, err := l.observe(ctx, what)
			if err != nil {
				return h, err
			}
			if what == "first" {
				h.size = b.LogIndex
			}
			h.ledger, h.last = append(h.ledger, b.Statement), b.JSON
		}
		return h, nil
	})
}

// auditCase tampers with a copy of the home. An auditor that makes every check
// but one must not see it, one that makes all must; then fsck has the word.
func auditCase(missing check, tamper func(h history, home app.Layout) (index int64, err error)) func(context.Context, *ground, Control) (effect, error) {
	return func(ctx context.Context, g *ground, c Control) (effect, error) {
		h, err := g.history(ctx)
		if err != nil {
			return effect{}, err
		}
		home, err := g.copyHome(h.now)
		if err != nil {
			return effect{}, err
		}
		index, err := tamper(h, app.Layout{Home: home})
		if err != nil {
			return effect{}, fmt.Errorf("tampering: %w", err)
		}
		if c == Off {
			if err := audit(ctx, home, 0); err == nil {
				return effect{}, errors.New("an auditor with every check sees nothing: there is nothing to see")
			}
			if err := audit(ctx, home, missing); err != nil {
				return effect{detail: err.Error()}, nil
			}
			return effect{done: true, detail: "the tampered evidence passes for whole"}, nil
		}
		return fsck(ctx, home, index)
	}
}

// fsck is the control: it must find one thing first, at that index.
func fsck(ctx context.Context, home string, index int64) (effect, error) {
	rep, err := app.LogFsck(ctx, home, false)
	if err != nil {
		return effect{}, err
	}
	if len(rep.Problems) == 0 {
		return effect{done: true, detail: "fsck finds nothing"}, nil
	}
	p := rep.Problems[0]
	if p.Index != index {
		return effect{}, fmt.Errorf("fsck names index %d, not %d: %s", p.Index, index, p.Message)
	}
	return effect{reason: p.Code, detail: p.Message}, nil
}

// entries opens the newest entry bundle of the log and lets change have it.
func entries(home app.Layout, change func(all [][]byte) error) error {
	var files []string
	err := filepath.WalkDir(filepath.Join(home.Log(), "tile", "entries"), func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, p)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		var b api.EntryBundle
		if err := b.UnmarshalText(raw); err != nil {
			return err
		}
		if err := change(b.Entries); err != nil {
			return err
		}
		var out []byte
		for _, e := range b.Entries {
			size := len(e)
			if size > math.MaxUint16 {
				return fmt.Errorf("an entry of %d bytes", size)
			}
			out = binary.BigEndian.AppendUint16(out, uint16(size))
			out = append(out, e...)
		}
		if err := errors.Join(os.Chmod(f, 0o644), os.WriteFile(f, out, 0o644)); err != nil {
			return err
		}
	}
	return nil
}

// editEntry makes the second entry stand for what the first is about.
func editEntry(_ history, home app.Layout) (int64, error) {
	return 1, entries(home, func(all [][]byte) error {
		if len(all) < 2 {
			return nil // an older, partial bundle: nothing reads it any more
		}
		from, err := translog.StatementOf(all[1])
		if err != nil {
			return err
		}
		to, err := translog.StatementOf(all[0])
		if err != nil {
			return err
		}
		edited := bytes.Replace(all[1], base64Of(from), base64Of(to), 1)
		if bytes.Equal(edited, all[1]) {
			return errors.New("the entry does not hold its digest")
		}
		all[1] = edited
		return nil
	})
}

func reorder(_ history, home app.Layout) (int64, error) {
	return 0, entries(home, func(all [][]byte) error {
		if len(all) > 1 {
			all[0], all[1] = all[1], all[0]
		}
		return nil
	})
}

// truncate puts the log's directory back as it was, and nothing else.
func truncate(h history, home app.Layout) (int64, error) {
	return -1, restoreLog(h, home)
}

func restoreLog(h history, home app.Layout) error {
	if err := durable.RemoveTree(home.Log()); err != nil {
		return err
	}
	return copyTree(app.Layout{Home: h.before}.Log(), home.Log())
}

func deletePayload(h history, home app.Layout) (int64, error) {
	d := h.ledger[1].Hex()
	return h.size + 1, os.Remove(filepath.Join(home.Blobs(), "sha256", d[:2], d))
}

// olderCopy puts everything but the guard back as it was, and asks the home to
// log something new.
func olderCopy(ctx context.Context, g *ground, c Control) (effect, error) {
	h, err := g.history(ctx)
	if err != nil {
		return effect{}, err
	}
	home, err := g.copyHome(h.before)
	if err != nil {
		return effect{}, err
	}
	guard := app.Layout{Home: home}.Guard()
	if err := errors.Join(durable.RemoveTree(guard), copyTree(app.Layout{Home: h.now}.Guard(), guard)); err != nil {
		return effect{}, err
	}
	return h.grow(ctx, home, c)
}

func deleteGuard(ctx context.Context, g *ground, c Control) (effect, error) {
	h, err := g.history(ctx)
	if err != nil {
		return effect{}, err
	}
	home, err := g.copyHome(h.before)
	if err != nil {
		return effect{}, err
	}
	if err := durable.RemoveTree(app.Layout{Home: home}.Guard()); err != nil {
		return effect{}, err
	}
	return h.grow(ctx, home, c)
}

// grow appends to a log. Without the control, its guard takes whatever the log
// shows for what was signed last. What is wanted is a second entry at an index
// that had one.
func (h history) grow(ctx context.Context, home string, c Control) (effect, error) {
	var guard translog.Guard // the home's own
	if c == Off {
		guard = &forgetful{home: home}
	} else if _, err := app.PolicySet(ctx, home, nil, [][2]string{{"scans.maxAge", "29d"}}); hallmark.KindOf(err) != hallmark.KindDenied {
		return effect{done: err == nil, detail: "the home signed and logged"}, err
	}
	l, err := openLedger(ctx, home, guard)
	if c == On && hallmark.KindOf(err) == hallmark.KindDenied {
		return effect{reason: hallmark.CodeOf(err), detail: err.Error()}, h.unchanged(home)
	}
	if err != nil {
		return effect{}, err
	}
	b, err := l.observe(ctx, "instead")
	if err = errors.Join(err, l.close()); err != nil {
		return effect{}, err
	}
	if b.LogIndex != h.size || b.Statement == h.ledger[0] {
		return effect{}, fmt.Errorf("the entry stands at %d, not in the place of another at %d", b.LogIndex, h.size)
	}
	return effect{done: true, detail: fmt.Sprintf("another entry was signed and logged at index %d", h.size)}, nil
}

// unchanged reports an error when the log of the older copy has grown.
func (h history) unchanged(home string) error {
	cp, err := checkpointOf(home)
	if err == nil && fmt.Sprint(cp.Size) != fmt.Sprint(h.size) {
		err = fmt.Errorf("the log was denied and has %d entries, not %d", cp.Size, h.size)
	}
	return err
}

// editIndex drops a statement from the index.
func editIndex(ctx context.Context, g *ground, c Control) (effect, error) {
	h, err := g.history(ctx)
	if err != nil {
		return effect{}, err
	}
	home, err := g.copyHome(h.now)
	if err != nil {
		return effect{}, err
	}
	lost := h.ledger[1]
	if err := withIndex(home, func(index *sqlstore.Store) error {
		rows, err := index.Statements(ctx, "")
		if err != nil {
			return err
		}
		n := len(rows)
		rows = slices.DeleteFunc(rows, func(r sqlstore.Row) bool { return r.Statement == lost })
		if len(rows) != n-1 {
			return errors.New("the statement is not in the index to begin with")
		}
		return index.Rebuild(ctx, nil, rows)
	}); err != nil {
		return effect{}, fmt.Errorf("editing the index: %w", err)
	}
	if c == On {
		rep, err := app.LogFsck(ctx, home, true)
		if err != nil {
			return effect{}, err
		}
		if len(rep.Problems) > 0 || !rep.Rebuilt {
			return effect{}, fmt.Errorf("fsck did not rebuild the index: %v", rep.Problems)
		}
	}
	found, inLog := false, false
	err = withIndex(home, func(index *sqlstore.Store) error {
		if _, found, err = index.BundleOf(ctx, lost); err != nil {
			return err
		}
		_, inLog, err = index.LeafOf(ctx, lost)
		return err
	})
	switch {
	case err != nil:
		return effect{}, err
	case !found && !inLog:
		return effect{done: true, detail: "nothing finds the statement any more"}, nil
	case found && inLog:
		return effect{reason: hallmark.CodeLogIndexRebuilt, detail: "statement and log index are found again"}, nil
	}
	return effect{}, errors.New("only half of the index is as it was")
}

func withIndex(home string, do func(*sqlstore.Store) error) error {
	index, err := sqlstore.Open(sqlstore.Config{Path: app.Layout{Home: home}.Index()})
	if err != nil {
		return err
	}
	return errors.Join(do(index), index.Close())
}

// splitView grows the older copy to the size that the log has, with other
// entries, and shows both to one reader.
func splitView(ctx context.Context, g *ground, c Control) (effect, error) {
	h, err := g.history(ctx)
	if err != nil {
		return effect{}, err
	}
	home, err := g.copyHome(h.before)
	if err != nil {
		return effect{}, err
	}
	l, err := openLedger(ctx, home, &forgetful{home: home})
	if err != nil {
		return effect{}, err
	}
	var other []byte
	for _, what := range []string{"other first", "other second", "other third"} {
		b, oerr := l.observe(ctx, what)
		err, other = errors.Join(err, oerr), b.JSON
	}
	if err = errors.Join(err, l.close()); err != nil {
		return effect{}, err
	}
	cfg, err := g.verifierConfig()
	if err != nil {
		return effect{}, err
	}
	if c == On {
		g.outs++
		if cfg.Memory, err = verify.NewFileMemory(g.path("memory", fmt.Sprint(g.outs))); err != nil {
			return effect{}, err
		}
	}
	v, err := verify.New(cfg)
	if err != nil {
		return effect{}, err
	}
	seen, err := v.Verify(h.last)
	if err != nil {
		return effect{}, fmt.Errorf("verifying the first view: %w", err)
	}
	s, err := v.Verify(other)
	if err != nil {
		return effect{reason: hallmark.CodeOf(err), detail: err.Error()}, nil
	}
	if s.CheckpointSize() != seen.CheckpointSize() {
		return effect{}, fmt.Errorf("the views have %d and %d entries", seen.CheckpointSize(), s.CheckpointSize())
	}
	return effect{done: true, detail: fmt.Sprintf("one reader accepts two trees of %d entries", s.CheckpointSize())}, nil
}
