// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
)

func logCommand(s *streams) *cobra.Command {
	cmd := &cobra.Command{Use: "log", Short: "read and check the transparency log", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(
		&cobra.Command{Use: "checkpoint", Short: "print the newest signed checkpoint", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				home, err := s.homeDir()
				if err != nil {
					return err
				}
				raw, err := app.LogCheckpoint(cmd.Context(), home)
				if err != nil {
					return err
				}
				if s.json {
					s.message(map[string]any{"type": "checkpoint", "note": string(raw)})
					return nil
				}
				_, err = s.out.Write(raw)
				return err
			}},
		logProveCommand(s), logFsckCommand(s),
	)
	return cmd
}

func logProveCommand(s *streams) *cobra.Command {
	return &cobra.Command{Use: "prove INDEX|STATEMENT", Short: "print the log entry with its inclusion proof", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			index := int64(-1)
			var digest hallmark.Digest
			if n, perr := strconv.ParseUint(args[0], 10, 62); perr == nil {
				index = int64(n)
			} else if digest, err = hallmark.ParseDigest(args[0]); err != nil {
				return usagef("log prove %q: want a log index or a statement digest sha256:HEX", args[0])
			}
			entry, err := app.LogProve(cmd.Context(), home, index, digest)
			if err != nil {
				return err
			}
			_, err = s.out.Write(append(entry, '\n'))
			return err
		}}
}

func logFsckCommand(s *streams) *cobra.Command {
	var rebuild bool
	cmd := &cobra.Command{Use: "fsck", Short: "check the log against checkpoint, fork guard, blobs and index", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			rep, err := app.LogFsck(cmd.Context(), home, rebuild)
			if err != nil {
				return err
			}
			if s.json {
				s.message(map[string]any{"type": "fsck", "ok": len(rep.Problems) == 0, "entries": rep.Entries, "problems": rep.Problems, "unindexed": rep.Unindexed, "rebuilt": rep.Rebuilt})
			} else {
				s.print("%d entries, %d problems", rep.Entries, len(rep.Problems))
				for _, p := range rep.Problems {
					at := ""
					if p.Index >= 0 {
						at = " at index " + strconv.FormatInt(p.Index, 10)
					}
					s.print("  %s%s: %s", p.Code, at, p.Message)
				}
				if rep.Unindexed > 0 {
					s.note("the index lacks %d entries of the log, as after a crash", rep.Unindexed)
					s.hint("hallmark log fsck --rebuild")
				}
				if rep.Rebuilt {
					s.print("the index was rebuilt from log and blobs")
				}
			}
			if len(rep.Problems) > 0 {
				return errDenied
			}
			return nil
		}}
	cmd.Flags().BoolVar(&rebuild, "rebuild", false, "recreate the SQL index from log and blobs")
	return cmd
}

func advisoriesCommand(s *streams) *cobra.Command {
	cmd := &cobra.Command{Use: "advisories", Short: "manage the local advisory data", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(&cobra.Command{Use: "sync SOURCE…", Short: "take OSV advisories from a zip file or a directory", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			for _, source := range args {
				rep, err := app.SyncAdvisories(cmd.Context(), home, source)
				if err != nil {
					return err
				}
				for _, e := range rep {
					if s.json {
						s.message(map[string]any{"type": "advisories", "ecosystem": e.Name, "records": e.Records, "newest": e.Newest, "digest": e.Digest})
					} else {
						s.print("%-16s %6d advisories, newest %s, %s", e.Name, e.Records, e.Newest.UTC().Format("2006-01-02"), e.Digest)
					}
				}
			}
			return nil
		}})
	return cmd
}

func reportCommand(s *streams) *cobra.Command {
	var framework, format string
	cmd := &cobra.Command{Use: "report", Short: "conformance, worked out from evidence", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			if s.json {
				format = "json"
			}
			return app.Report(cmd.Context(), home, framework, format, s.out)
		}}
	cmd.Flags().StringVar(&framework, "framework", "nist-800-204d", "nist-800-204d, slsa or ssdf")
	cmd.Flags().StringVar(&format, "format", "text", "text, html or json")
	return cmd
}

func doctorCommand(s *streams) *cobra.Command {
	return &cobra.Command{Use: "doctor", Short: "what this machine lacks, and the command that supplies it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			ok := true
			for _, f := range app.Doctor(cmd.Context(), home) {
				if s.json {
					s.message(map[string]any{"type": "doctor", "name": f.Name, "ok": f.OK, "needed": f.Needed, "detail": f.Detail, "fix": f.Fix})
				} else {
					state := "ok"
					if !f.OK && f.Needed {
						state = "MISSING"
					} else if !f.OK {
						state = "absent"
					}
					s.print("  %-32s %-8s %s", f.Name, state, f.Detail)
					if !f.OK && f.Fix != "" {
						s.print("  %-32s          fix: %s", "", f.Fix)
					}
				}
				ok = ok && (f.OK || !f.Needed)
			}
			if !ok {
				return hallmark.Errorf(hallmark.KindUnavailable, "this machine lacks something that is needed")
			}
			return nil
		}}
}

func schemaCommand(s *streams) *cobra.Command {
	schemas := map[string]func() []byte{"pipeline": app.PipelineSchema, "serve": app.ServerSchema}
	names := slices.Sorted(maps.Keys(schemas))
	return &cobra.Command{Use: "schema " + strings.Join(names, "|"), Short: "print the JSON Schema of a file format, for editors", Args: cobra.ExactArgs(1), ValidArgs: names,
		RunE: func(_ *cobra.Command, args []string) error {
			schema, ok := schemas[args[0]]
			if !ok {
				return hallmark.WithHint(usagef("no schema for %q", args[0]), "the schemas are: "+strings.Join(names, ", "))
			}
			_, err := s.out.Write(schema())
			return err
		}}
}

func versionCommand(s *streams) *cobra.Command {
	return &cobra.Command{Use: "version", Short: "print the version of this binary", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			t, err := app.Tool()
			if err != nil {
				return err
			}
			if s.json {
				s.message(map[string]any{"type": "version", "name": t.Name, "version": t.Version, "digest": t.Digest})
				return nil
			}
			s.print("%s %s %s", t.Name, t.Version, t.Digest)
			return nil
		}}
}
