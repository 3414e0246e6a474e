// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
)

// commandEnded is how a wrapped command ended, which is how we end.
type commandEnded struct{ code int }

func (e commandEnded) Error() string { return fmt.Sprintf("the command ended with %d", e.code) }

func wrapCommand(s *streams) *cobra.Command {
	var cfg app.WrapConfig
	var passFile string
	cmd := &cobra.Command{
		Use:   "wrap [flags] -- COMMAND [ARGS]",
		Short: "run one command of another CI system and make evidence of what it did",
		Long: `Run a command as it is, in this directory, with this environment, network and
user, and record every program, file and connection of it. It is not isolated,
and the evidence says so. The builder.id is
https://hallmark-sc.github.io/builders/wrap, which no policy trusts by default.

Standard input, output and error are the command's own; what Hallmark says goes
to standard error. The exit code is the command's (128 and the number for a
signal), and evidence is written whatever it was. It is 1, with a reason code,
when the command did not run, its record is not whole, an artifact is not its
work, or the evidence could not be written.

Values of environment variables are not recorded. Arguments of programs are.`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch dash := cmd.ArgsLenAtDash(); {
			case dash < 0, dash > 0:
				return hallmark.WithHint(usagef("wrap: the command stands behind --"), "hallmark wrap --artifact app -- make app")
			case len(args) == 0:
				return hallmark.WithHint(usagef("wrap: there is no command behind --"), "hallmark wrap --artifact app -- make app")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			cfg.Home, cfg.Argv = home, args
			if cfg.Passphrase, err = passphrase(passFile); err != nil {
				return err
			}
			if err := s.lend(&cfg); err != nil {
				return err
			}
			res, err := app.Wrap(cmd.Context(), cfg)
			if res.Bundles > 0 {
				s.wrapped(res)
			}
			if err != nil {
				return err
			}
			if res.ExitCode != 0 {
				return commandEnded{res.ExitCode}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&cfg.Out, "out", "hallmark-wrap-out", "directory for artifacts and evidence")
	cmd.Flags().StringArrayVar(&cfg.Artifacts, "artifact", nil, "file below the current directory that the command builds (repeat)")
	cmd.Flags().StringVar(&cfg.Step, "step", "", "name of the command in evidence (default: that of its program)")
	cmd.Flags().StringVar(&cfg.RepositoryURI, "repository", "", "canonical URI of the repository in evidence (default: file:// and its path)")
	passphraseFlag(cmd, &passFile)
	return cmd
}

// lend gives the command our streams. From here on standard output is its own.
func (s *streams) lend(cfg *app.WrapConfig) error {
	var ok [3]bool
	cfg.Stdin, ok[0] = s.in.(*os.File)
	cfg.Stdout, ok[1] = s.out.(*os.File)
	cfg.Stderr, ok[2] = s.err.(*os.File)
	if ok != [3]bool{true, true, true} {
		return hallmark.Errorf(hallmark.KindInternal, "wrap: standard input, output and error are no files")
	}
	s.out = s.err
	return nil
}

// wrapped says where the evidence is.
func (s *streams) wrapped(res app.Wrapped) {
	if s.json {
		s.message(map[string]any{"type": "wrap", "exit": res.ExitCode, "whole": res.Whole, "out": res.Out, "bundles": res.Bundles,
			"reasons": append([]hallmark.Reason{}, res.Reasons...), "noProvenance": append([]hallmark.Reason{}, res.NoProvenance...)})
		return
	}
	s.note("evidence %s (%d bundles)", res.Out, res.Bundles)
	for _, r := range res.NoProvenance {
		s.note("no provenance: %s %s", r.Code, r.Message)
	}
}
