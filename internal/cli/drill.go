// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/drill"
)

func drillCommand(s *streams) *cobra.Command {
	var table bool
	var results string
	cmd := &cobra.Command{
		Use:   "drill [AT-NN…]",
		Short: "the attack catalogue, each attack with its control off and on",
		Long: `Run the attack catalogue against your own configuration. Each attack runs twice in
a throwaway home under the policy parameters of your home: with its control taken
away it must succeed, with its control in place it must be stopped by it.

Without a home the default policy is tried. Exit 3 when any run is not as it
should be; a case that can't run on this machine is skipped, which is not ok.

With --table nothing is drilled: the reference attack tree is printed as a table,
each attack with the control here and its drill and, with --results FILE of what
hallmark drill --json printed, how that ended.

The drills are ` + strings.Join(drill.Attacks(), " ") + `.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if table {
				return s.attackTree(args, results)
			}
			if results != "" {
				return usagef("drill: --results goes with --table")
			}
			if _, err := drill.Select(args); err != nil {
				return err
			}
			parameters, err := s.ownParameters(cmd)
			if err != nil {
				return err
			}
			runs, good := 0, 0
			ok, err := drill.Run(cmd.Context(), drill.Config{Attacks: args, Parameters: parameters, Report: func(r drill.Result) {
				runs++
				if r.OK {
					good++
				}
				s.drillResult(r)
			}})
			if err != nil {
				return err
			}
			if !s.json {
				s.print("%d of %d runs ended as they should", good, runs)
			}
			if !ok {
				return errDenied
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&table, "table", false, "print the reference attack tree with the drill of each attack (Markdown)")
	cmd.Flags().StringVar(&results, "results", "", "file of what hallmark drill --json printed, for --table")
	return cmd
}

// attackTree prints the table of the reference attack tree.
func (s *streams) attackTree(args []string, results string) error {
	if len(args) > 0 {
		return usagef("drill --table: want no attacks")
	}
	var ran map[string]drill.Ran
	if results != "" {
		f, err := os.Open(results)
		if err != nil {
			return hallmark.Errorf(hallmark.KindInvalid, "reading the results: %w", err)
		}
		defer f.Close()
		if ran, err = drill.ReadResults(f); err != nil {
			return err
		}
	}
	if err := drill.TreeTable(s.out, ran); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	return nil
}

// ownParameters are the policy parameters of the home; the default policy's when
// there is none and none was asked for.
func (s *streams) ownParameters(cmd *cobra.Command) ([][2]string, error) {
	home, err := s.homeDir()
	if err != nil {
		return nil, err
	}
	state, err := app.PolicyShow(cmd.Context(), home)
	if hallmark.KindOf(err) == hallmark.KindNotFound && s.home == "" {
		s.note("there is no home in %s: drilling the default policy", home)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s.note("drilling the policy of %s, version %d", home, state.Version)
	var out [][2]string
	for _, p := range state.Parameters {
		out = append(out, [2]string{p.Key, p.Value})
	}
	return out, nil
}

// drillResult prints one run of a case. With its second run stands what still
// works.
func (s *streams) drillResult(r drill.Result) {
	if s.json {
		s.message(r)
		if !r.OK {
			s.note("%s %s, control %s: %s", r.Case.Attack, r.Case.Letter, r.Control, r.Detail)
		}
		return
	}
	if r.Control == drill.Off {
		s.print("%s %s  %s", r.Case.Attack, r.Case.Letter, r.Case.Does)
		s.print("  control    %s", r.Case.Control)
	}
	verdict := "ok"
	if !r.OK {
		verdict = "NOT OK"
	}
	s.print("  %-10s %-7s %-10s %-30s %s", r.Control, verdict, r.Outcome, r.Reason, r.Detail)
	if r.Control == drill.On {
		s.print("  residual   %s", r.Case.Residual)
	}
}
