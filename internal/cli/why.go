// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/build"
)

// explainFile prints what a build did with one file. It is denied when no process
// is known to have read it.
func explainFile(ctx context.Context, s *streams, cfg app.VerifyConfig, file string) error {
	if file == "" {
		return hallmark.Errorf(hallmark.KindUsage, "--why: want a path or a digest")
	}
	w, err := app.ExplainFile(ctx, cfg, file)
	if err != nil {
		return err
	}
	if s.json {
		s.message(w)
	} else {
		printWhy(s, w)
	}
	if len(w.Readers) == 0 {
		return errDenied
	}
	return nil
}

func printWhy(s *streams, w app.Why) {
	s.print("%s", quoted(build.Raw(w.File)))
	for _, v := range w.Versions {
		s.print("  %s %s", quoted(v.Path), v.Digest)
	}
	if len(w.Readers) == 0 {
		s.print("  no process of the build read it")
		return
	}
	const most = 20
	for _, r := range w.Readers[:min(len(w.Readers), most)] {
		s.print("  read by    %s", process(r))
		for _, o := range r.Fed[:min(len(r.Fed), 3)] {
			s.print("    wrote    %s %s", quoted(o.Path), o.Digest)
		}
		if n := len(r.Fed) - 3; n > 0 {
			s.print("    wrote    %d more files (--json has all)", n)
		}
	}
	if n := len(w.Readers) - most; n > 0 {
		s.print("  read by    %d more processes (--json has all)", n)
	}
	if len(w.Way) == 0 {
		s.print("  nothing is known by which it reached %s", w.Artifact)
		return
	}
	s.print("  reached %s", w.Artifact)
	for _, h := range w.Way {
		switch h.Kind {
		case build.HopFile:
			s.print("    %-10s %s %s", "file", quoted(h.Path), h.Digest)
		case build.HopRenamed:
			s.print("    %-10s %s", "renamed to", quoted(h.Path))
		case build.HopReader:
			s.print("    %-10s %s", "read by", process(h))
		case build.HopParent:
			s.print("    %-10s %s", "child of", process(h))
		case build.HopChild:
			s.print("    %-10s %s", "parent of", process(h))
		}
	}
	if !w.Certain {
		s.print("  between parent and child it can only have gone by a pipe, an argument or an exit status, which are not recorded")
	}
}

func process(h build.Hop) string {
	var args []string
	room := 200
	for _, a := range h.Args {
		if room -= len(a); room < 0 {
			args = append(args, "…")
			break
		}
		args = append(args, quoted(a))
	}
	return fmt.Sprintf("process %d of step %s: %s (%s)", h.Process, h.Step, quoted(h.Path), strings.Join(args, " "))
}

// quoted is a path or argument that can do nothing to a terminal.
func quoted(r build.Raw) string {
	s := string(r)
	if q := fmt.Sprintf("%q", s); q != `"`+s+`"` {
		return q
	}
	return s
}
