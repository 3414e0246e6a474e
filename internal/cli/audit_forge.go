// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// forgeToken is the variable that holds a token where no file does.
const forgeToken = "HALLMARK_FORGE_TOKEN"

func sourceAuditCommand(s *streams) *cobra.Command {
	var cfg app.ForgeAuditConfig
	var tokenFile, authority, passFile string
	var fix, plan bool
	cmd := &cobra.Command{
		Use: "audit URL", Short: "say how a repository at another forge is set up, and mend it", Args: cobra.ExactArgs(1),
		Long: `Read how a repository at Gitea, GitHub or GitLab is protected, hold it against what
is wanted, and say what to do about each difference. With a home that is named
(--home or $HALLMARK_HOME) what was read is signed and logged.

--plan shows what a repair would change; --fix changes it, each shown as old and
new, reads everything again, and leaves alone what is stricter already. The token
is that of an administrator of the repository, from --token-file or
$HALLMARK_FORGE_TOKEN. What it may not see is a finding and never passes.

Exits 3 while findings stand.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg.Forge.URL = args[0]
			if fix && plan {
				return usagef("source audit: --fix or --plan, not both")
			}
			if fix {
				cfg.Mend = app.ForgeFix
			} else if plan {
				cfg.Mend = app.ForgePlan
			}
			var err error
			if cfg.Forge.Token, err = forgeTokenOf(tokenFile); err != nil {
				return err
			}
			if authority != "" {
				if cfg.Forge.Authority, err = os.ReadFile(authority); err != nil {
					return usagef("source audit: reading the authority: %s", err)
				}
			}
			if v := cfg.Wanted.Visibility; v != "" && v != "public" && v != "internal" && v != "private" {
				return usagef("source audit: --visibility %.40q: want public, internal or private", v)
			}
			if cfg.Wanted.Approvals < 1 {
				return usagef("source audit: --approvals %d: want 1 or more", cfg.Wanted.Approvals)
			}
			if s.home != "" || os.Getenv("HALLMARK_HOME") != "" {
				if cfg.Home, err = s.homeDir(); err != nil {
					return err
				}
				if cfg.Passphrase, err = passphrase(passFile); err != nil {
					return err
				}
			}
			cfg.Said = func(r source.Repair, err error) { s.repair(cfg.Mend, r, err) }
			a, err := app.AuditForge(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			s.forgeAudit(a, cfg)
			if len(a.Findings()) > 0 {
				return errDenied
			}
			return nil
		}}
	f := cmd.Flags()
	f.StringVar(&tokenFile, "token-file", "", "file with the token, readable by you alone (default $HALLMARK_FORGE_TOKEN)")
	f.StringVar(&cfg.Forge.Kind, "kind", "", "gitea, github or gitlab, where the host's name does not say it")
	f.StringVar(&cfg.Forge.API, "api", "", "base URL of its interface, where that is somewhere else")
	f.StringVar(&authority, "authority", "", "file of the certificates to trust there, instead of the machine's")
	f.StringSliceVar(&cfg.Forge.Branches, "branch", nil, "another branch to look at, besides the default one")
	f.IntVar(&cfg.Wanted.Approvals, "approvals", 1, "how many must approve")
	f.StringSliceVar(&cfg.Wanted.Checks, "check", nil, "a check that must be required")
	f.StringSliceVar(&cfg.Wanted.Pushers, "pusher", nil, "an account that may push without a review: the one that hallmark serve forwards with")
	f.StringSliceVar(&cfg.Wanted.Trusted, "trust", nil, "a collaborator from outside who may write")
	f.StringVar(&cfg.Wanted.Visibility, "visibility", "", "public, internal or private; not judged without")
	f.BoolVar(&cfg.Wanted.Unsigned, "unsigned", false, "commits need no signature that the forge verifies (the gate verifies its own)")
	f.BoolVar(&fix, "fix", false, "change what is not as wanted, where the interface lets it")
	f.BoolVar(&plan, "plan", false, "show what --fix would change, and change nothing")
	passphraseFlag(cmd, &passFile)
	return cmd
}

// forgeTokenOf reads the token; none is allowed, and sees little.
func forgeTokenOf(file string) (string, error) {
	if file != "" {
		return app.ReadToken(file)
	}
	return os.Getenv(forgeToken), nil
}

// repair says what is changed, or would be, before it is.
func (s *streams) repair(mend app.ForgeMending, r source.Repair, err error) {
	word := "change"
	if mend == app.ForgePlan {
		word = "would change"
	}
	on := r.On
	if on == "" {
		on = "repository"
	}
	switch {
	case s.json && err != nil:
		s.message(map[string]any{"type": "repair", "on": on, "failed": err.Error(), "code": hallmark.CodeOf(err)})
	case s.json:
		s.message(map[string]any{"type": "repair", "planned": mend == app.ForgePlan, "codes": r.Codes, "on": on, "is": r.Is, "becomes": r.Becomes, "method": r.Method, "path": r.Path})
	case err != nil:
		s.print("not changed: %s: %s", on, err)
	default:
		s.print("%s %s: %s -> %s (%s %s)", word, on, r.Is, r.Becomes, r.Method, r.Path)
	}
}

func (s *streams) forgeAudit(a app.ForgeAudit, cfg app.ForgeAuditConfig) {
	findings := a.Findings()
	if s.json {
		for _, x := range a.Aspects {
			s.message(map[string]any{"type": "setting", "code": x.Code, "on": x.On, "outcome": x.Outcome, "is": x.Is, "want": x.Want, "fix": x.Fix})
		}
		s.message(map[string]any{"type": "audit", "repository": a.Posture.Repository, "forge": a.Posture.Forge, "version": a.Posture.Version, "findings": len(findings), "statements": a.Statements})
		return
	}
	passed, told := 0, 0
	for _, x := range a.Aspects {
		on := ""
		if x.On != "" {
			on = x.On + ": "
		}
		switch x.Outcome {
		case hallmark.Pass:
			passed++
		case hallmark.Skipped:
			told++
			s.print("not told  %s %s%s", x.Code, on, x.Is)
		case hallmark.Errored:
			s.print("unread    %s %s: %s%s; wanted: %s", hallmark.CodeForgeUnknown, x.Code, on, x.Is, x.Want)
			s.print("          fix: %s", x.Fix)
		default:
			s.print("finding   %s %s%s; wanted: %s", x.Code, on, x.Is, x.Want)
			s.print("          fix: %s", x.Fix)
		}
	}
	s.print("%s (%s %s): %d findings, %d settings as wanted, %d that it tells nobody", a.Posture.Repository, a.Posture.Forge, a.Posture.Version, len(findings), passed, told)
	for _, d := range a.Statements {
		s.print("logged %s", d)
	}
	if cfg.Home == "" {
		s.note("nothing was signed: name a home with --home")
	}
	if len(findings) > 0 && cfg.Mend == app.ForgeReport {
		s.hint("--plan shows what can be mended from here, --fix does it")
	}
}
