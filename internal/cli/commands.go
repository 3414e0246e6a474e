// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
)

// passphraseFlag adds --passphrase-file; $HALLMARK_PASSPHRASE and
// $HALLMARK_PASSPHRASE_FILE are read when it is not given. There is no prompt.
func passphraseFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "passphrase-file", "", "file whose first line is the passphrase of the keys (or $HALLMARK_PASSPHRASE_FILE, $HALLMARK_PASSPHRASE)")
}

func passphrase(file string) ([]byte, error) {
	if file == "" {
		file, _ = os.LookupEnv("HALLMARK_PASSPHRASE_FILE")
	}
	if file == "" {
		return []byte(os.Getenv("HALLMARK_PASSPHRASE")), nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading passphrase file: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	line = strings.TrimSuffix(line, "\r")
	if line == "" {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "passphrase file %s: the first line is empty", file)
	}
	return []byte(line), nil
}

func initCommand(s *streams) *cobra.Command {
	var cfg app.InitConfig
	var passFile string
	var repo bool
	var registry []string
	cmd := &cobra.Command{
		Use:   "init [DIR]",
		Short: "make the home: keys, pinned roots, signed policy, log and store",
		Long: `Make the home: keys, pinned roots, signed policy, log and store. Running it
again changes nothing.

With --single-operator one person holds all keys. With two or more
--administrator NAME=FILE and --threshold N, each administrator keeps a key of
their own (hallmark policy key) and the home can be used when N of them signed
its genesis and first policy (hallmark policy sign).

With --repo it writes a commented starter .hallmark/pipeline.yaml for the project
in DIR (default: the current directory) instead.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if repo {
				dir := "."
				if len(args) == 1 {
					dir = args[0]
				}
				path, created, err := app.StarterPipeline(dir)
				if err != nil {
					return err
				}
				if s.json {
					s.message(map[string]any{"type": "pipeline", "path": path, "created": created})
				} else if created {
					s.print("wrote %s", path)
					s.hint("look it over, commit it with your signing key, then: hallmark run %s", dir)
				} else {
					s.print("%s exists and was not changed", path)
				}
				return nil
			}
			if len(args) > 0 {
				return usagef("init takes a directory only with --repo; the home is named by --home")
			}
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			if cfg.Passphrase, err = passphrase(passFile); err != nil {
				return err
			}
			cfg.Home = home
			if cfg.Registries, err = registries(cmd.Context(), registry); err != nil {
				return err
			}
			res, err := app.Init(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if s.json {
				s.message(map[string]any{"type": "init", "home": home, "created": res.Created, "roots": res.Roots, "policyVersion": res.PolicyVersion, "registries": res.Registries, "origin": res.Origin, "mode": res.Mode, "threshold": res.Threshold, "unsigned": len(res.Others) > 0})
				return nil
			}
			if res.Created {
				s.print("made the home %s", home)
			} else {
				s.print("the home %s exists and was not changed", home)
			}
			s.print("roots %s", res.Roots)
			s.print("log   %s", res.Origin)
			for _, kind := range slices.Sorted(maps.Keys(res.Registries)) {
				s.print("%-5s packages from %s", kind, res.Registries[kind])
			}
			if !res.Created && cfg.AllowedSigners != "" {
				s.note("%s was not read: the allowed signers are in the policy of the home", cfg.AllowedSigners)
			}
			for _, w := range res.Warnings {
				s.note("%s", w)
			}
			if len(res.Others) > 0 {
				s.note("the home can't be used before %d of %s signed its genesis and first policy", res.Threshold, strings.Join(res.Others, ", "))
				s.hint("each signs: hallmark policy sign --home %s --key FILE", home)
			}
			s.hint("give the roots digest to everyone who verifies, by another way than the evidence")
			return nil
		},
	}
	cmd.Flags().StringVar(&cfg.AllowedSigners, "allowed-signers", "", "OpenSSH allowed_signers file: who may sign commits")
	cmd.Flags().BoolVar(&cfg.SingleOperator, "single-operator", false, "one administrator; every verdict says so")
	cmd.Flags().StringArrayVar(&cfg.Administrators, "administrator", nil, "NAME=FILE of an administrator and the public half of the key (repeat); only NAME with --single-operator (default: the first allowed signer)")
	cmd.Flags().IntVar(&cfg.Threshold, "threshold", 0, "how many administrators must sign a policy, 2 or more")
	cmd.Flags().StringArrayVar(&registry, "registry", nil, "where dependencies are fetched from, go=URL or npm=URL (default: what the client on this machine is set to, or none)")
	cmd.Flags().StringArrayVar(&cfg.Repositories, "repository", nil, "URI, or pattern of URIs, of a repository that may be built (repeat; default: any)")
	cmd.Flags().BoolVar(&repo, "repo", false, "write a starter pipeline definition for a project instead")
	passphraseFlag(cmd, &passFile)
	return cmd
}

func runCommand(s *streams) *cobra.Command {
	var cfg app.RunConfig
	var passFile string
	var params []string
	var h hosted
	cmd := &cobra.Command{
		Use:   "run [REPO]",
		Short: "the main job: one revision from commit to verdict",
		Long: `Take one revision from commit to verdict, here or, with --server, on a server,
where REPO is the name of a repository there. The results are the same.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("server") {
				if err := h.check(cmd, args, &cfg); err != nil {
					return err
				}
				var err error
				if h.q.Parameters, err = parameters(params); err != nil {
					return err
				}
				return h.run(cmd, s, cfg.Out)
			}
			for _, name := range hostedOnly() {
				if cmd.Flags().Changed(name) {
					return usagef("run: --%s is of a run on a server: want --server URL", name)
				}
			}
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			cfg.Home, cfg.Repo = home, "."
			if len(args) == 1 {
				cfg.Repo = args[0]
			}
			if cfg.Passphrase, err = passphrase(passFile); err != nil {
				return err
			}
			if cfg.Parameters, err = parameters(params); err != nil {
				return err
			}
			p := newProgress(s)
			cfg.Progress, cfg.Alert = p.event, p.alert
			res, err := app.Run(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			d := res.Verdict.Decision
			if s.json {
				s.message(map[string]any{"type": "verdict", "effect": d.Effect, "revision": res.Revision, "artifacts": res.Artifacts, "decision": d, "levels": res.Verdict.Levels, "vsa": res.VSA.Statement, "out": res.Out})
			} else {
				s.print("%s %s of %s", verdictWord(d), res.Revision.Commit, res.Revision.Repository)
				for _, a := range res.Artifacts {
					s.print("  %s  %s  %d bytes", a.Digest, a.Name, a.Size)
				}
				s.decision(d)
				s.print("evidence %s (%d bundles)", res.Out, len(res.Evidence)+1)
			}
			if !d.Allowed() {
				return errDenied
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&cfg.Secrets, "secret", nil, "NAME=FILE, repeated: a secret for the steps that name it; FILE has mode 0600")
	cmd.Flags().StringVar(&cfg.Rev, "rev", "HEAD", "revision: a commit, a branch or a tag")
	cmd.Flags().StringVar(&cfg.Out, "out", "hallmark-out", "directory for artifacts and evidence")
	cmd.Flags().StringVar(&cfg.RepositoryURI, "repository", "", "canonical URI of the repository in evidence (default: file:// and its path)")
	cmd.Flags().StringArrayVar(&params, "param", nil, "NAME=VALUE of an external parameter that pipeline and build policy list (repeat)")
	h.flags(cmd)
	cmd.Flags().BoolVar(&cfg.CommittedOnly, "committed-only", false, "accept a work tree with changes: they are not looked at, only the commit is")
	passphraseFlag(cmd, &passFile)
	return cmd
}

// parameters reads NAME=VALUE, each name once.
func parameters(args []string) (map[string]string, error) {
	if len(args) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, a := range args {
		name, value, ok := strings.Cut(a, "=")
		if _, twice := out[name]; !ok || name == "" || twice {
			return nil, usagef("--param %q: want NAME=VALUE, each name once", a)
		}
		out[name] = value
	}
	return out, nil
}

// verifyFlags are shared by the commands that read evidence.
type verifyFlags struct {
	cfg   app.VerifyConfig
	roots string
	at    string
}

func (v *verifyFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&v.cfg.Evidence, "evidence", "", "evidence: a result directory or an evidence.jsonl (default: beside the file; for a digest or a commit, the home)")
	f.StringVar(&v.cfg.TrustedRoot, "trusted-root", "", "trusted_root.json (default: the home's, or the one in the evidence if its digest is pinned)")
	f.StringVar(&v.roots, "roots", "", "digest of the roots to trust (default: the home's)")
	f.StringVar(&v.at, "at", "", "decide as of this time, RFC 3339 (default: now)")
	f.StringVar(&v.cfg.State, "state", "", "directory that remembers the largest checkpoint seen (default $XDG_STATE_HOME/hallmark)")
}

func (v *verifyFlags) resolve(s *streams) error {
	home, err := s.homeDir()
	if err != nil && v.roots == "" {
		return err
	}
	v.cfg.Home = home
	if v.roots != "" {
		if v.cfg.Roots, err = hallmark.ParseDigest(v.roots); err != nil {
			return usagef("--roots: %s", err)
		}
	}
	if v.at != "" {
		if v.cfg.At, err = time.Parse(time.RFC3339, v.at); err != nil {
			return usagef("--at %q: want a time such as 2026-01-02T15:04:05Z", v.at)
		}
	}
	return nil
}

// slsaLevel is the form of a level in a verification summary (SlsaResult of
// https://slsa.dev/verification_summary/v1).
var slsaLevel = regexp.MustCompile(`^SLSA_[A-Z]+_LEVEL_[0-9]$`)

func verifyCommand(s *streams) *cobra.Command {
	var v verifyFlags
	var level, rebuilder, rebuildDir string
	var params []string
	var reproduced bool
	cmd := &cobra.Command{
		Use:   "verify ARTIFACT",
		Short: "decide again about an artifact, offline, under pinned roots",
		Long: `Decide again about an artifact, offline, under pinned roots: signatures, who may
sign what, log inclusion, times, subject digests and policy. It opens no socket.

Exit 3 whenever the answer is not "allowed"; 1 when the roots are not pinned or
the input can't be read.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := v.resolve(s); err != nil {
				return err
			}
			v.cfg.Artifact = args[0]
			if level != "" && !slsaLevel.MatchString(level) {
				return usagef("--level %q: want a level of SLSA, such as SLSA_BUILD_LEVEL_1", level)
			}
			if level != "" {
				v.cfg.Levels = []string{level}
			}
			if reproduced || rebuilder != "" || rebuildDir != "" {
				v.cfg.Reproduced = &app.Reproduction{Dir: rebuildDir}
			}
			var err error
			if rebuilder != "" {
				if v.cfg.Reproduced.Roots, err = hallmark.ParseDigest(rebuilder); err != nil {
					return usagef("--rebuilder: %s", err)
				}
			}
			if v.cfg.Parameters, err = parameters(params); err != nil {
				return err
			}
			res, err := app.Verify(cmd.Context(), v.cfg)
			if err != nil {
				return err
			}
			for _, w := range res.Warnings {
				s.note("%s", w)
			}
			if s.json {
				s.message(map[string]any{"type": "verification", "effect": res.Decision.Effect, "artifact": res.Artifact, "decision": res.Decision, "revision": res.Revision, "levels": res.Levels, "clock": res.Clock, "roots": res.Roots})
			} else {
				s.print("%s %s  %s", verdictWord(res.Decision), res.Artifact.Digest, res.Artifact.Name)
				if res.Revision.Commit != "" {
					s.print("  revision %s of %s", res.Revision.Commit, res.Revision.Repository)
				}
				s.decision(res.Decision)
			}
			if !res.Decision.Allowed() {
				return errDenied
			}
			return nil
		},
	}
	v.add(cmd)
	cmd.Flags().StringArrayVar(&params, "param", nil, "NAME=VALUE of an external parameter that the build must have been given, and no others (repeat; default: what its build policy permits)")
	cmd.Flags().BoolVar(&reproduced, "reproduced", false, "ask for a rebuild that gave the same bytes (hallmark rebuild)")
	cmd.Flags().StringVar(&rebuildDir, "rebuild", "", "directory of that rebuild (default: rebuild in the evidence)")
	cmd.Flags().StringVar(&rebuilder, "rebuilder", "", "digest of the roots of the home that rebuilt (default: those of the evidence)")
	cmd.Flags().StringVar(&v.cfg.Ref, "ref", "", "branch or tag that the revision must be of, such as refs/heads/main")
	cmd.Flags().StringVar(&v.cfg.ResourceURI, "resource", "", "expected resourceUri of the verification summary, such as git+https://example.org/app")
	cmd.Flags().StringVar(&level, "level", "", "level that the summary must reach, such as SLSA_BUILD_LEVEL_1")
	return cmd
}

func explainCommand(s *streams) *cobra.Command {
	var v verifyFlags
	var why string
	cmd := &cobra.Command{
		Use:   "explain SUBJECT",
		Short: "print the chain of custody of an artifact, a digest or a commit",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := v.resolve(s); err != nil {
				return err
			}
			v.cfg.Artifact = args[0]
			if cmd.Flags().Changed("why") {
				return explainFile(cmd.Context(), s, v.cfg, why)
			}
			chain, err := app.Explain(cmd.Context(), v.cfg)
			if err != nil {
				return err
			}
			if s.json {
				for _, l := range chain.Links {
					s.message(l)
				}
			} else {
				s.print("%s", chain.Subject)
				for _, l := range chain.Links {
					s.print("  %-10s %-8s %s", l.Link, l.State, l.Detail)
					if l.Evidence != "" {
						s.print("             %s  log index %d  signed %s by %s", l.Evidence, l.LogIndex, l.SignedAt.UTC().Format(time.RFC3339), l.Signer)
					}
				}
			}
			if chain.Missing {
				return errDenied
			}
			return nil
		},
	}
	v.add(cmd)
	cmd.Flags().StringVar(&why, "why", "", "say which process of the build read this file (a path inside, or a digest), and what it fed")
	return cmd
}

func replayCommand(s *streams) *cobra.Command {
	var v verifyFlags
	cmd := &cobra.Command{
		Use:   "replay VERDICT",
		Short: "recompute a verdict byte for byte from its pinned inputs",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := v.resolve(s); err != nil {
				return err
			}
			v.cfg.Artifact = args[0]
			res, err := app.Replay(cmd.Context(), v.cfg)
			if err != nil {
				return err
			}
			if s.json {
				s.message(map[string]any{"type": "replay", "equal": res.Equal, "verdict": res.Digest, "differences": append([]string{}, res.Differences...)})
			} else if res.Equal {
				s.print("the same bytes: %s", res.Digest)
			} else {
				s.print("the bytes differ")
				for _, d := range res.Differences {
					s.print("  %s", d)
				}
			}
			if !res.Equal {
				return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeVerdictDiffers, "the recomputed verdict differs from %s", args[0])
			}
			return nil
		},
	}
	v.add(cmd)
	return cmd
}
