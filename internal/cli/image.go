// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark/internal/app"
)

func imageCommand(s *streams) *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "container images that builds are made in and from", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var cfg app.ImportConfig
	imp := &cobra.Command{
		Use:   "import PATH|NAME@sha256:DIGEST",
		Short: "put an image into the home, from where runs take it by digest",
		Long: `Put an image into the home: from an OCI image layout (a directory, or a tar
archive of one), from a tar archive of docker save, or from a registry by digest.
Every byte is compared with its digest, and hostile layers are refused. A pipeline
then names it: image: NAME@sha256:DIGEST.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			cfg.Home, cfg.From = home, args[0]
			all, err := app.ImportImage(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			for _, i := range all {
				if s.json {
					s.message(map[string]any{"type": "image", "digest": i.Digest, "manifest": i.Manifest, "platform": i.Platform, "layers": i.Layers})
				} else {
					s.print("%s  %s  %d layers", i.Digest, i.Platform, i.Layers)
				}
			}
			return nil
		},
	}
	imp.Flags().StringArrayVar(&cfg.Platforms, "platform", nil, "OS/ARCHITECTURE of an index to import (repeat; default: this machine's)")
	imp.Flags().StringVar(&cfg.Digest, "digest", "", "which image, when a layout names several")
	cmd.AddCommand(imp)
	return cmd
}
