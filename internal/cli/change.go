// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
)

// remote are the flags of commands that ask a server.
type remote struct{ server, authority, tokenFile string }

func (r *remote) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.server, "server", "", "https://HOST:PORT of the server (default $HALLMARK_SERVER)")
	cmd.Flags().StringVar(&r.authority, "authority", "", "PEM file of the authority to trust besides the machine's (default $HALLMARK_AUTHORITY)")
}

func (r *remote) tokenFlag(cmd *cobra.Command) {
	r.flags(cmd)
	cmd.Flags().StringVar(&r.tokenFile, "token-file", "", "file that holds the token (default $HALLMARK_TOKEN_FILE; hallmark sign-in writes one)")
}

func (r *remote) client(signedIn bool) (*app.Client, error) {
	or := func(v, name string) string {
		if v != "" {
			return v
		}
		return os.Getenv(name)
	}
	token := ""
	if signedIn {
		file := or(r.tokenFile, "HALLMARK_TOKEN_FILE")
		if file == "" {
			return nil, hallmark.WithHint(usagef("nobody is signed in: want --token-file FILE"), "hallmark sign-in --out FILE writes one")
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, hallmark.Errorf(hallmark.KindInvalid, "reading the token: %w", err)
		}
		token = strings.TrimSpace(string(b))
	}
	return app.NewClient(or(r.server, "HALLMARK_SERVER"), or(r.authority, "HALLMARK_AUTHORITY"), token)
}

// browserTime is how long a person may take to sign in.
const browserTime = 100 * time.Second

func signInCommand(s *streams) *cobra.Command {
	var r remote
	var key, passFile, as, repository, out, issuer, tokenFile string
	var browser bool
	var scopes []string
	var life time.Duration
	cmd := &cobra.Command{
		Use: "sign-in", Short: "sign in to a server with an SSH key, a browser or an issuer's token, for a token", Args: cobra.NoArgs,
		Long: `Sign in to a server with an SSH key that the policy names, for a token that is the
password of git and of the other commands. It is good for a while, for the scopes
and repositories that are asked for, and never for more than you are granted.

With --oidc a browser on this machine signs in at an OpenID Connect issuer that the
policy lists; with --oidc-token a robot shows the token that such an issuer gave
it, which is good once.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ways := 0
			for _, given := range []bool{key != "", browser, tokenFile != ""} {
				if given {
					ways++
				}
			}
			if ways != 1 || out == "" || key != "" && as == "" {
				return usagef("sign-in: want --key and --as, --oidc, or --oidc-token; and --out")
			}
			ask := app.SignIn{Principal: as, Repository: repository, Scopes: scopes, Life: life.String()}
			c, err := r.client(false)
			if err != nil {
				return err
			}
			var t app.Issued
			switch {
			case browser:
				ctx, cancel := context.WithTimeout(cmd.Context(), browserTime)
				defer cancel()
				t, err = c.SignInBrowser(ctx, issuer, ask, func(url string) { s.note("open this in a browser on this machine: %s", url) })
			case tokenFile != "":
				var token []byte
				if token, err = os.ReadFile(tokenFile); err != nil {
					return hallmark.Errorf(hallmark.KindInvalid, "reading the token: %w", err)
				}
				t, err = c.SignInToken(cmd.Context(), token, ask)
			default:
				var pass, pem []byte
				if pass, err = passphrase(passFile); err != nil {
					return err
				}
				if pem, err = os.ReadFile(key); err != nil {
					return hallmark.Errorf(hallmark.KindInvalid, "reading the key: %w", err)
				}
				t, err = c.SignIn(cmd.Context(), pem, pass, ask)
			}
			if err != nil {
				return err
			}
			if err := app.WriteSecret(out, t.Token); err != nil {
				return err
			}
			if s.json {
				s.message(map[string]any{"type": "token", "id": t.ID, "principal": t.Principal, "expiresAt": t.ExpiresAt, "file": out})
				return nil
			}
			s.print("signed in as %s until %s, token %s", t.Principal, t.ExpiresAt.Format(time.RFC3339), t.ID)
			return nil
		}}
	r.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "SSH private key")
	f.BoolVar(&browser, "oidc", false, "sign in by a browser at an OpenID Connect issuer")
	f.StringVar(&issuer, "issuer", "", "the issuer, where the policy lists several")
	f.StringVar(&tokenFile, "oidc-token", "", "file of a token that an OpenID Connect issuer gave to this robot")
	f.StringVar(&as, "as", "", "who you are, as the policy names you")
	f.StringVar(&repository, "repository", "**", "pattern of repositories")
	f.StringSliceVar(&scopes, "scope", []string{"repository.read", "ref.push", "change.propose"}, "permissions")
	f.DurationVar(&life, "for", 8*time.Hour, "how long the token is good")
	f.StringVar(&out, "out", "", "new file for the token")
	passphraseFlag(cmd, &passFile)
	return cmd
}

func changeCommand(s *streams) *cobra.Command {
	cmd := &cobra.Command{Use: "change", Short: "propose, show, approve and merge changes of protected references", Args: cobra.NoArgs,
		Long: `A change is one exact revision for one reference. An approval counts for it alone:
whoever pushes again proposes anew.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var r remote
	var p app.ChangeProposal
	propose := &cobra.Command{
		Use: "propose REPOSITORY", Short: "propose the revision of a branch for another", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.Repository = args[0]
			if p.From == "" || p.To == "" {
				return usagef("change propose: want --from and --to")
			}
			c, err := r.client(true)
			if err != nil {
				return err
			}
			a, err := c.Propose(cmd.Context(), p)
			return s.changeAnswer(a, "proposed", err)
		}}
	propose.Flags().StringVar(&p.From, "from", "", "branch that has it")
	propose.Flags().StringVar(&p.To, "to", "", "branch that it is for")
	propose.Flags().StringVar(&p.Title, "title", "", "what it is, in a line")
	r.tokenFlag(propose)
	cmd.AddCommand(propose, changeShowCommand(s), changeActCommand(s, "approve", "approved", "agree to exactly this revision for this reference"), changeActCommand(s, "merge", "merged", "move the reference to the approved revision"),
		changeActCommand(s, "run", "runs", "let exactly this revision run before it landed, without secrets and without network"))
	return cmd
}

func (s *streams) changeAnswer(a app.ChangeAnswer, done string, err error) error {
	if err != nil {
		return err
	}
	if s.json {
		s.message(a)
	} else if a.Allowed && a.Run != "" {
		s.print("%s %s as %s", done, a.Change, a.Run)
	} else if a.Allowed {
		s.print("%s %s", done, a.Change)
	}
	if a.Allowed {
		return nil
	}
	if !s.json {
		s.reasons(a.Reasons)
	}
	return errDenied
}

func (s *streams) reasons(list []hallmark.Reason) {
	for _, r := range list {
		s.print("%s: %s", r.Code, r.Message)
		for _, l := range [][2]string{{"missing", r.Missing}, {"nearest", r.Nearest}, {"fix", r.Fix}} {
			if l[1] != "" {
				s.print("  %s: %s", l[0], l[1])
			}
		}
	}
}

func changeActCommand(s *streams, action, done, short string) *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use: action + " CHANGE", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := r.client(true)
			if err != nil {
				return err
			}
			a, err := c.Act(cmd.Context(), args[0], action)
			return s.changeAnswer(a, done, err)
		}}
	r.tokenFlag(cmd)
	return cmd
}

func changeShowCommand(s *streams) *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use: "show CHANGE", Short: "show what a change does, who had a part in it and what is missing", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := r.client(true)
			if err != nil {
				return err
			}
			v, err := c.Change(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if s.json {
				s.message(v)
				return nil
			}
			s.print("change   %s %s", v.Change, v.Title)
			s.print("lands    %s of %s", v.Target, v.Repository)
			s.print("moves    %s to %s", v.Base, v.Revision)
			if v.Held {
				s.print("held     a push from outside; nothing of it is in the repository")
			}
			for _, k := range v.Commits {
				signer := "nobody"
				if k.Signer != nil {
					signer = k.Signer.Name
				}
				s.print("commit   %s by %s, signed by %s", k.Commit, k.Author, signer)
			}
			s.print("parties  %s", strings.Join(v.Parties, ", "))
			s.print("approved %d of %d: %s", len(v.Approvers), v.Needed, strings.Join(v.Approvers, ", "))
			s.reasons(v.Missing)
			s.print("\n%s", v.Diff)
			return nil
		}}
	r.tokenFlag(cmd)
	return cmd
}
