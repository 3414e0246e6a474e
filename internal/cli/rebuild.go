// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
)

func rebuildCommand(s *streams) *cobra.Command {
	var v verifyFlags
	var cfg app.RebuildConfig
	var passFile string
	cmd := &cobra.Command{
		Use: "rebuild EVIDENCE", Short: "build again what evidence attests, and compare bit for bit", Args: cobra.ExactArgs(1),
		Long: `Build again what the provenance in EVIDENCE attests, a result directory or its
evidence.jsonl: the same commit, pipeline, parameters and dependencies, in fresh
sandboxes and without anything that an earlier build left. Every artifact is
compared bit for bit. What came of it is signed and left in EVIDENCE/rebuild, or
--out DIR, for hallmark verify --reproduced.

Two homes that agree say more than one that agrees with itself: rebuild in the
home of somebody else, with --roots DIGEST of the home that built.

Exit 3 when anything differs, with the first file that does and what wrote it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := v.resolve(s); err != nil {
				return err
			}
			var err error
			if cfg.Passphrase, err = passphrase(passFile); err != nil {
				return err
			}
			cfg.Verify = v.cfg
			cfg.Verify.Evidence = args[0]
			if cfg.Out == "" {
				dir := args[0]
				if filepath.Ext(dir) == ".jsonl" {
					dir = filepath.Dir(dir)
				}
				cfg.Out = filepath.Join(dir, "rebuild")
			}
			res, err := app.Rebuild(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			s.rebuilt(res)
			if !res.Reproduced {
				return errDenied
			}
			return nil
		}}
	f := cmd.Flags()
	f.StringVar(&v.cfg.TrustedRoot, "trusted-root", "", "trusted_root.json of the home that built (default: the one in the evidence if its digest is pinned)")
	f.StringVar(&v.roots, "roots", "", "digest of the roots of the home that built (default: the home's)")
	f.StringVar(&v.cfg.State, "state", "", "directory that remembers the largest checkpoint seen (default $XDG_STATE_HOME/hallmark)")
	f.StringVar(&cfg.Repo, "repo", "", "directory of the repository (default: what the evidence names)")
	f.StringVar(&cfg.Out, "out", "", "directory for the rebuilt artifacts and the statement (default EVIDENCE/rebuild)")
	passphraseFlag(cmd, &passFile)
	return cmd
}

func (s *streams) rebuilt(res app.Rebuilt) {
	if s.json {
		s.message(map[string]any{"type": "rebuild", "reproduced": res.Reproduced, "built": res.Built, "artifacts": res.Artifacts, "reasons": res.Reasons, "explanations": res.Explanations,
			"difference": res.Difference, "statement": res.Statement, "roots": res.OwnRoots, "out": res.Out})
		return
	}
	word := "REPRODUCED"
	if !res.Reproduced {
		word = "NOT REPRODUCED"
	}
	s.print("%s, statement %s", word, res.Statement)
	for _, a := range res.Artifacts {
		state := "same"
		switch {
		case !res.Built:
			state = "unbuilt"
		case a.Rebuilt != a.Attested:
			state = "differs"
		}
		s.print("  %-8s %s  %s", state, a.Attested, a.Name)
	}
	for _, r := range res.Reasons {
		s.print("  %s: %s", r.Code, r.Message)
		if r.Fix != "" {
			s.print("    fix: %s", r.Fix)
		}
	}
	if d := res.Difference; d != nil {
		s.print("  first in step %d:", d.Step+1)
		s.written("attested", d.First)
		s.written("rebuilt", d.Second)
	}
	for _, e := range res.Explanations {
		s.print("  may explain it: %s", e)
	}
	s.print("rebuild %s", res.Out)
	if res.Same {
		s.note("the home that rebuilt is the one that built: this shows that the build is reproducible, not that two builders agree")
	}
}

func (s *streams) written(which string, w build.Written) {
	if w.Digest == "" {
		s.print("    %-8s nothing", which)
		return
	}
	var args []string
	for _, a := range w.Args {
		args = append(args, oneLine(string(a)))
	}
	s.print("    %-8s %s %s by %s (%s)", which, oneLine(string(w.Path)), w.Digest, oneLine(string(w.Program)), strings.Join(args, " "))
}
