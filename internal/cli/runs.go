// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

// hosted are the flags of a run that a server makes.
type hosted struct {
	remote remote
	q      app.RunRequest
	v      verifyFlags
}

func (h *hosted) flags(cmd *cobra.Command) {
	h.remote.tokenFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&h.q.Ref, "ref", "", "with --server: branch, tag or full reference (default: the first branch of the repository)")
	f.StringVar(&h.v.roots, "roots", "", "with --server: digest of the roots to verify the results under")
	f.StringVar(&h.v.cfg.TrustedRoot, "trusted-root", "", "with --server: trusted_root.json to verify the results with")
	f.StringVar(&h.v.cfg.State, "state", "", "with --server: directory that remembers the largest checkpoint seen (default $XDG_STATE_HOME/hallmark)")
}

// hostedOnly are the flags that mean nothing without a server.
func hostedOnly() []string {
	return []string{"authority", "token-file", "ref", "roots", "trusted-root", "state"}
}

// check wants what a server can do, and reads what is asked for.
func (h *hosted) check(cmd *cobra.Command, args []string, cfg *app.RunConfig) error {
	for _, name := range []string{"secret", "repository", "committed-only", "passphrase-file"} {
		if cmd.Flags().Changed(name) {
			return usagef("run: --%s is of a run on this machine, not of one on a server", name)
		}
	}
	if len(args) != 1 {
		return usagef("run --server: want the name of a repository of the server")
	}
	h.q.Repository = args[0]
	if cmd.Flags().Changed("rev") {
		h.q.Revision = cfg.Rev
	}
	return nil
}

// run asks a server for a run, follows it and fetches what it leaves.
func (h *hosted) run(cmd *cobra.Command, s *streams, out string) error {
	ctx := cmd.Context()
	verifies := h.v.roots != "" || h.v.cfg.TrustedRoot != ""
	if verifies {
		if err := h.v.resolve(s); err != nil {
			return err
		}
	}
	if err := app.CheckOut(out); err != nil { // before anything is asked for
		return err
	}
	c, err := h.remote.client(true)
	if err != nil {
		return err
	}
	a, err := c.RequestRun(ctx, h.q)
	if err != nil {
		return err
	}
	if !a.Allowed {
		if s.json {
			s.message(a)
		} else {
			s.reasons(a.Reasons)
		}
		return errDenied
	}
	v, err := c.RunOf(ctx, a.Run)
	if err != nil {
		return err
	}
	if err := h.asked(v); err != nil {
		return err
	}
	return h.follow(ctx, s, c, a.Run, out, verifies)
}

// asked wants a run to be of what was asked for: a true verdict on something else is
// no answer.
func (h *hosted) asked(v app.RunView) error {
	ref := h.q.Ref == "" || slices.Contains([]string{h.q.Ref, "refs/heads/" + h.q.Ref, "refs/tags/" + h.q.Ref}, v.Ref)
	revision := h.q.Revision == "" || strings.HasPrefix(v.Revision, h.q.Revision)
	if v.Repository != h.q.Repository || !strings.HasSuffix(v.URI, "/"+h.q.Repository+".git") || !ref || !revision || len(v.Parameters)+len(h.q.Parameters) > 0 && !maps.Equal(v.Parameters, h.q.Parameters) {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeVerdictDiffers, "the server ran %s of %s %s, which is not what was asked for", v.Revision, v.Repository, v.Ref)
	}
	return nil
}

// follow shows a run until it ended and fetches its results into out; "" fetches
// none.
func (h *hosted) follow(ctx context.Context, s *streams, c *app.Client, id, out string, verifies bool) error {
	if !s.json {
		s.note("run %s", id)
	}
	p := newProgress(s)
	v, err := c.Follow(ctx, id, p.message)
	if err != nil {
		return err
	}
	if v.State != "done" {
		return hallmark.WithHint(hallmark.Coded(hallmark.KindUnavailable, hallmark.Code(v.Code), "run %s %s: %s", id, v.State, v.Message), "hallmark runs show "+id)
	}
	res, err := c.Results(ctx, v, out)
	if err != nil {
		return err
	}
	d := res.Decision
	if verifies {
		if d, err = app.VerifyResults(ctx, res, h.v.cfg); err != nil {
			return err
		}
	}
	if s.json {
		s.message(map[string]any{"type": "verdict", "run": id, "effect": d.Effect, "revision": res.Revision, "artifacts": res.Artifacts, "decision": d, "levels": res.Levels, "out": res.Out, "verified": verifies})
	} else {
		s.print("%s %s of %s", verdictWord(d), res.Revision.Commit, res.Revision.Repository)
		for _, a := range res.Artifacts {
			s.print("  %s  %s  %d bytes", a.Digest, a.Name, a.Size)
		}
		s.decision(d)
		s.print("evidence %s, of run %s", res.Out, id)
		if !verifies {
			s.note("the results are the server's word: --roots DIGEST verifies them")
		}
	}
	if !d.Allowed() {
		return errDenied
	}
	return nil
}

// message shows what a server said of a run.
func (p *progress) message(raw []byte) {
	var m struct {
		Type, Stage, State, Detail string
		Outcome                    hallmark.Outcome
		Seconds                    float64
		Step                       string
		build.Egress
	}
	if json.Unmarshal(raw, &m) != nil {
		return
	}
	if p.s.json {
		if m.Type != "verdict" { // which is told when the results are here
			var any map[string]any
			if json.Unmarshal(raw, &any) == nil {
				p.s.message(any)
			}
		}
		return
	}
	switch m.Type {
	case "stage":
		for _, st := range []pipeline.State{pipeline.Started, pipeline.Finished, pipeline.Reused} {
			if st.String() == m.State {
				p.event(pipeline.Event{Stage: m.Stage, State: st, Outcome: m.Outcome, Detail: m.Detail, Elapsed: time.Duration(m.Seconds * float64(time.Second))})
			}
		}
	case "alert":
		p.alert(app.EgressAlert{Step: m.Step, Egress: m.Egress})
	}
}

func runsCommand(s *streams) *cobra.Command {
	cmd := &cobra.Command{Use: "runs", Short: "list, show and cancel the builds of a server", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(runsListCommand(s), runsShowCommand(s), runsLogCommand(s), runsFetchCommand(s), runsCancelCommand(s))
	return cmd
}

func runsListCommand(s *streams) *cobra.Command {
	var r remote
	var repository, state string
	cmd := &cobra.Command{
		Use: "list", Short: "list runs, the newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := r.client(true)
			if err != nil {
				return err
			}
			runs, err := c.Runs(cmd.Context(), repository, state)
			if err != nil {
				return err
			}
			for _, v := range runs {
				if s.json {
					s.message(v)
					continue
				}
				s.print("%s  %-7s  %-5s  %s  %s %s  %s", v.Run, v.State, v.Effect, v.Queued.Format(time.RFC3339), v.Repository, v.Ref, v.Revision)
			}
			return nil
		}}
	r.tokenFlag(cmd)
	cmd.Flags().StringVar(&repository, "repository", "", "of this repository alone")
	cmd.Flags().StringVar(&state, "state", "", "in this state alone: queued, leased, running, done, failed or lost")
	return cmd
}

func runsShowCommand(s *streams) *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use: "show RUN", Short: "show how a run stands", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := r.client(true)
			if err != nil {
				return err
			}
			v, err := c.RunOf(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if s.json {
				s.message(v)
				return nil
			}
			s.print("run      %s %s %s", v.Run, v.State, v.Effect)
			s.print("builds   %s of %s %s", v.Revision, v.Repository, v.Ref)
			s.print("asked    by %s (%s) at %s", v.Principal, v.Cause, v.Queued.Format(time.RFC3339))
			if !v.Started.IsZero() {
				s.print("began    %s, attempt %d", v.Started.Format(time.RFC3339), v.Attempt)
			}
			if !v.Finished.IsZero() {
				s.print("ended    %s", v.Finished.Format(time.RFC3339))
			}
			if v.Code != "" || v.Message != "" {
				s.print("%s %s", v.Code, v.Message)
			}
			return nil
		}}
	r.tokenFlag(cmd)
	return cmd
}

func runsLogCommand(s *streams) *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use: "log RUN STEP", Short: "print the log of a step, its secrets masked as it is kept", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := r.client(true)
			if err != nil {
				return err
			}
			body, err := c.RunLog(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			defer body.Close()
			b, err := io.ReadAll(io.LimitReader(body, 1<<30))
			if err != nil {
				return hallmark.Errorf(hallmark.KindUnavailable, "reading the log: %w", err)
			}
			if s.json {
				s.message(map[string]any{"type": "log", "run": args[0], "step": args[1], "text": string(b)})
				return nil
			}
			s.print("%s", string(b))
			return nil
		}}
	r.tokenFlag(cmd)
	return cmd
}

func runsFetchCommand(s *streams) *cobra.Command {
	var h hosted
	var out string
	cmd := &cobra.Command{
		Use: "fetch RUN", Short: "follow a run and fetch its results, as hallmark run --server does", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			verifies := h.v.roots != "" || h.v.cfg.TrustedRoot != ""
			if verifies {
				if err := h.v.resolve(s); err != nil {
					return err
				}
			}
			if err := app.CheckOut(out); err != nil {
				return err
			}
			c, err := h.remote.client(true)
			if err != nil {
				return err
			}
			return h.follow(cmd.Context(), s, c, path.Base(args[0]), out, verifies)
		}}
	h.remote.tokenFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&out, "out", "hallmark-out", "directory for artifacts and evidence")
	f.StringVar(&h.v.roots, "roots", "", "digest of the roots to verify the results under")
	f.StringVar(&h.v.cfg.TrustedRoot, "trusted-root", "", "trusted_root.json to verify the results with")
	f.StringVar(&h.v.cfg.State, "state", "", "directory that remembers the largest checkpoint seen (default $XDG_STATE_HOME/hallmark)")
	return cmd
}

func runsCancelCommand(s *streams) *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use: "cancel RUN", Short: "give a run up", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := r.client(true)
			if err != nil {
				return err
			}
			a, err := c.CancelRun(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if s.json {
				s.message(a)
			} else if a.Allowed {
				s.print("given up %s", a.Run)
			} else {
				s.reasons(a.Reasons)
			}
			if !a.Allowed {
				return errDenied
			}
			return nil
		}}
	r.tokenFlag(cmd)
	return cmd
}
