// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark/internal/app"
)

func cacheCommand(s *streams) *cobra.Command {
	cmd := &cobra.Command{Use: "cache", Short: "what builds need not compile again"}
	cmd.AddCommand(&cobra.Command{
		Use:   "warm [PACKAGE…]",
		Short: "compile the standard library of Go once, for every build of the home",
		Long: `Compile the standard library of Go, or some of its packages, in a sandbox that
holds nothing but the toolchain. Builds read the result and can't change it; they
give the same output with it and without. A changed toolchain needs a new one.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			w, err := app.WarmCache(cmd.Context(), home, args)
			if err != nil {
				return err
			}
			if s.json {
				s.message(map[string]any{"type": "cache", "key": w.Key, "entries": w.Entries, "bytes": w.Bytes})
			} else {
				s.print("warmed the toolchain cache: %d entries, %d bytes, toolchain state %s", w.Entries, w.Bytes, w.Key)
			}
			return nil
		},
	})
	return cmd
}
