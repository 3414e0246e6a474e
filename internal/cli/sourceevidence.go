// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
)

func sourceEvidenceCommand(s *streams) *cobra.Command {
	var r remote
	var out, roots string
	cmd := &cobra.Command{
		Use: "evidence REPOSITORY REVISION", Short: "what a server has signed of a revision", Args: cobra.ExactArgs(2),
		Long: `Fetch the source provenance and the verification summaries of one revision, and what
else a server signed of it, verify them under pinned roots (--roots, or those of the
home), and print what they say. Whoever may read the repository may ask.

--out FILE keeps the bundles, one a line, as stock cosign takes them.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			pin := hallmark.Digest(roots)
			if roots != "" {
				if err := pin.Check(); err != nil {
					return usagef("--roots: %v", err)
				}
			}
			home := ""
			if pin == "" {
				var err error
				if home, err = s.homeDir(); err != nil {
					return err
				}
			}
			c, err := r.client(true)
			if err != nil {
				return err
			}
			e, err := c.Evidence(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			facts, err := app.ReadSource(home, pin, args[0], e)
			if err != nil {
				return err
			}
			if out != "" {
				var b bytes.Buffer
				for _, line := range e.Bundles {
					if err := json.Compact(&b, line); err != nil {
						return hallmark.Errorf(hallmark.KindInvalid, "reading the evidence: %w", err)
					}
					b.WriteByte('\n')
				}
				if err := os.WriteFile(out, b.Bytes(), 0o644); err != nil {
					return hallmark.Errorf(hallmark.KindInvalid, "writing the evidence: %w", err)
				}
			}
			for _, f := range facts {
				if s.json {
					s.message(f)
					continue
				}
				s.print("%s %-10s %s", f.On.UTC().Format(time.RFC3339), f.Kind, strings.Join(strings.Fields(f.Ref+" "+f.Actor+" "+strings.Join(f.Levels, " ")), " "))
			}
			return nil
		}}
	r.tokenFlag(cmd)
	cmd.Flags().StringVar(&roots, "roots", "", "digest of the pinned roots (default: those of the home)")
	cmd.Flags().StringVar(&out, "out", "", "file to keep the bundles in")
	return cmd
}
