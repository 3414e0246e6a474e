// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark/internal/app"
)

func repositoryExpungeCommand(s *streams) *cobra.Command {
	var passFile, reason string
	cmd := &cobra.Command{
		Use: "expunge NAME OBJECT… --reason WHY", Short: "take objects out of a repository for good, for a legal or privacy reason", Args: cobra.MinimumNArgs(2),
		Long: `Take objects out of a repository for good. No reference may reach them: first a new
version of the policy lets the reference's history be rewritten, and somebody who may
pushes history without them (docs/serve.md tells the whole process). All other objects
are kept, also those that no reference reaches. The names of the objects and the reason
are logged before anything is removed. The server must have ended.

Exits 3 when a reference still shows one of them.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			pass, err := passphrase(passFile)
			if err != nil {
				return err
			}
			if err := app.Expunge(cmd.Context(), home, args[0], reason, args[1:], pass); err != nil {
				return err
			}
			if s.json {
				s.message(map[string]any{"type": "expunged", "repository": args[0], "objects": args[1:]})
				return nil
			}
			s.print("expunged %d objects of %s", len(args)-1, args[0])
			return nil
		}}
	cmd.Flags().StringVar(&reason, "reason", "", "the legal or privacy reason, one line; it is logged for good")
	passphraseFlag(cmd, &passFile)
	return cmd
}
