// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
)

// progress shows the stages as they go: a typed message each with --json, a live
// line on a terminal, a plain line when one finishes otherwise.
type progress struct {
	s    *streams
	tty  bool
	mu   sync.Mutex
	live bool // an unfinished line stands on the terminal
}

func newProgress(s *streams) *progress {
	f, ok := s.err.(*os.File)
	return &progress{s: s, tty: ok && term.IsTerminal(int(f.Fd())) && !s.json}
}

func (p *progress) event(e pipeline.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.s.json {
		p.s.message(app.StageMessage(e))
		return
	}
	if e.State == pipeline.Started {
		if p.tty {
			fmt.Fprintf(p.s.err, "  … %-8s\r", e.Stage)
			p.live = true
		}
		return
	}
	word := "done"
	if e.Outcome != 0 {
		word = e.Outcome.String()
	}
	if e.Stage == "decide" {
		word = map[hallmark.Outcome]string{hallmark.Pass: "allowed", hallmark.Fail: "denied"}[e.Outcome]
	}
	took := e.Elapsed.Round(10 * time.Millisecond).String()
	if e.State == pipeline.Reused {
		took = "saved"
	}
	line := fmt.Sprintf("  %-8s %-8s %8s  %s", e.Stage, word, took, e.Detail)
	if p.tty && p.live {
		fmt.Fprint(p.s.err, "\r\x1b[K")
		p.live = false
	}
	fmt.Fprintln(p.s.err, strings.TrimRight(clean(line), " "))
}

// alert tells of an attempt to leave a sandbox while the step still runs.
func (p *progress) alert(a app.EgressAlert) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.s.json {
		p.s.message(app.AlertMessage(a))
		return
	}
	if p.tty && p.live {
		fmt.Fprint(p.s.err, "\r\x1b[K")
		p.live = false
	}
	to := a.Address
	if a.Name != "" {
		to += " (asking for " + a.Name + ")"
	}
	fmt.Fprintln(p.s.err, clean(fmt.Sprintf("  ALERT    %s: step %s, %s (%s, process %d) tries to reach %s", hallmark.CodeBuildEgress, a.Step, a.Process, a.Program, a.PID, to)))
}

// verdictWord is what a decision says in one word.
func verdictWord(d hallmark.Decision) string {
	if d.Allowed() {
		return "ALLOWED"
	}
	return "DENIED"
}

// decision prints a decision as a table of checks and, for a denial, what is
// wrong and what to do about each reason.
func (s *streams) decision(d hallmark.Decision) {
	for _, c := range d.Checks {
		codes := make([]string, 0, len(c.Reasons))
		for _, r := range c.Reasons {
			if !slices.Contains(codes, string(r.Code)) {
				codes = append(codes, string(r.Code))
			}
		}
		s.print("  %-12s %-8s %s", c.Check, c.Outcome, strings.Join(codes, " "))
	}
	for i, r := range d.Reasons {
		if i == 0 {
			s.print("")
		}
		s.print("%s %s", r.Code, r.Message)
		for _, line := range [][2]string{{"missing", r.Missing}, {"nearest", r.Nearest}, {"differs in", r.Field}, {"to do", r.Fix}} {
			if line[1] != "" {
				s.print("    %s: %s", line[0], line[1])
			}
		}
	}
	for _, n := range d.Notes {
		s.print("note: %s", n)
	}
}
