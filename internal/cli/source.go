// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/ledger"
)

func sourceCommand(s *streams) *cobra.Command {
	cmd := &cobra.Command{Use: "source", Short: "compare git repositories with the log", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var name string
	verify := &cobra.Command{
		Use: "verify [NAME | PATH|URL --repository NAME]", Short: "name every reference that moved outside of the gate", Args: cobra.MaximumNArgs(1),
		Long: `Compare the branches and tags of a repository with what the log says of the one of
that name: a clone, what a URL shows, or without an argument the repository of this
home and its upstream. Every transition is verified, and that it follows from the one
before. What the transitions oblige to and is missing is named too (hallmark audit
obligations).

Exits 3 when anything differs, or is overdue.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			path := ""
			if len(args) == 1 {
				path = args[0]
			}
			if name == "" && !strings.Contains(path, "://") {
				name, path = path, ""
			}
			if name == "" {
				return usagef("source verify: want the name of a repository, or --repository NAME")
			}
			st, err := app.VerifySource(cmd.Context(), home, name, path)
			if err != nil {
				return err
			}
			if s.json {
				s.message(st)
			} else {
				for _, d := range st.Differences {
					at := ""
					if d.Where != "" {
						at = " at " + d.Where
					}
					s.print("%s: %s is at %s%s, the log says %s: %s", d.Code, d.Ref, d.Is, at, d.Logged, d.Detail)
				}
				for _, o := range st.Unmet {
					s.print("missing: %s", o.Says())
				}
				s.print("%d references and %d transitions of %s, %d differences", st.Refs, st.Transitions, st.Repository, len(st.Differences))
			}
			if len(st.Differences) > 0 || slices.ContainsFunc(st.Unmet, func(o ledger.Obligation) bool { return o.State == ledger.Overdue }) {
				return errDenied
			}
			return nil
		}}
	verify.Flags().StringVar(&name, "repository", "", "name of the repository in this home")
	cmd.AddCommand(verify, sourceEvidenceCommand(s), sourceAuditCommand(s))
	return cmd
}
