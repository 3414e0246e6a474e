// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/ledger"
)

func auditCommand(s *streams) *cobra.Command {
	var from, to string
	cmd := &cobra.Command{
		Use: "audit", Short: "everything that happened in a period, from evidence alone", Args: cobra.NoArgs,
		Long: `Print everything that happened in a period: each reference that moved or was not
let, each review, each use and change of access, each fetch, policy, build and
verdict. It is read from the log and its payloads, every one verified; one that is
missing or altered is an error.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			start, end := time.Time{}, time.Now().UTC().Add(time.Hour)
			for _, f := range []struct {
				flag, value string
				to          *time.Time
			}{{"--from", from, &start}, {"--to", to, &end}} {
				if f.value == "" {
					continue
				}
				t, err := parseWhen(f.value)
				if err != nil {
					return usagef("%s %q: want 2026-11-24 or 2026-11-24T10:00:00Z", f.flag, f.value)
				}
				*f.to = t
			}
			n, err := app.Audit(cmd.Context(), home, start, end, func(e app.AuditEvent) error {
				if s.json {
					s.message(e)
					return nil
				}
				s.print("%s %-10s %-6s %s %s %s %s", e.On.Format(time.RFC3339), e.Kind, e.Effect, e.Actor, e.Resource, e.Detail, strings.Join(e.Codes, ","))
				return nil
			})
			if err != nil {
				return err
			}
			s.note("%d events", n)
			return nil
		}}
	cmd.Flags().StringVar(&from, "from", "", "beginning, such as 2026-11-24 (UTC)")
	cmd.Flags().StringVar(&to, "to", "", "end, not included")
	cmd.AddCommand(obligationsCommand(s))
	return cmd
}

func obligationsCommand(s *streams) *cobra.Command {
	var repository, at string
	var unmet bool
	cmd := &cobra.Command{
		Use: "obligations", Short: "what must exist because of what was pushed, and what of it is missing", Args: cobra.NoArgs,
		Long: `List what each move of a reference obliges to: a scan, a build and, where the
reference takes only approved changes, a review of exactly that revision. Each is met
by named evidence in the log, which was verified. Evidence that was taken away leaves
it unmet. It must be met within source.obligationMaxAge of the policy.

Exits 3 when any is overdue.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			when := time.Now().UTC()
			if at != "" {
				if when, err = parseWhen(at); err != nil {
					return usagef("--at %q: want 2026-11-24 or 2026-11-24T10:00:00Z", at)
				}
			}
			all, err := app.Obligations(cmd.Context(), home, repository, when)
			if err != nil {
				return err
			}
			count := map[ledger.State]int{}
			for _, o := range all {
				count[o.State]++
				switch {
				case unmet && !o.Unmet():
				case s.json:
					s.message(o)
				default:
					s.print("%s: %s", o.Repository, o.Says())
				}
			}
			s.note("%d met, %d open, %d overdue, %d closed", count[ledger.Met], count[ledger.Open], count[ledger.Overdue], count[ledger.Closed])
			if count[ledger.Overdue] > 0 {
				return errDenied
			}
			return nil
		}}
	cmd.Flags().StringVar(&repository, "repository", "", "of this repository of the home only")
	cmd.Flags().StringVar(&at, "at", "", "as it stands at this time (default now)")
	cmd.Flags().BoolVar(&unmet, "unmet", false, "only what is missing")
	return cmd
}

func parseWhen(text string) (time.Time, error) {
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return t, nil
	}
	return time.Parse(time.RFC3339, text)
}

func accessReviewCommand(s *streams) *cobra.Command {
	return &cobra.Command{
		Use: "review", Short: "say of every grant how often it was used, and when last", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			uses, err := app.ReviewAccess(cmd.Context(), home)
			if err != nil {
				return err
			}
			for _, u := range uses {
				last := "never used"
				if u.Used > 0 {
					last = "used " + u.Last.Format(time.RFC3339)
				}
				if u.Ended {
					last += ", ended"
				}
				if s.json {
					s.message(u)
					continue
				}
				s.print("%s\t%s\t%s\t%s\t%d times\t%s", u.Grant.ID, u.Grant.Principal, u.Grant.Role, strings.Join(u.Grant.Repositories, ","), u.Used, last)
			}
			return nil
		}}
}
