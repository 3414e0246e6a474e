// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/access"
	"github.com/hallmark-sc/hallmark/internal/app"
)

func accessCommand(s *streams) *cobra.Command {
	cmd := &cobra.Command{Use: "access", Short: "who may do what: principals, grants, tokens, protected references", Args: cobra.NoArgs,
		Long: `Who may do what is a section of the signed policy: every change is its next
version, signed by the single operator or proposed to the administrators. What no
grant allows is refused.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(accessPrincipalCommand(s), accessIssuerCommand(s), accessTrustDomainCommand(s), accessSecondFactorCommand(s), accessGrantCommand(s), accessRevokeCommand(s), accessRefsCommand(s), accessShowCommand(s), accessWhoCanCommand(s), accessReviewCommand(s), accessTokenCommand(s))
	return cmd
}

// change makes the next policy and says what became of it.
func (s *streams) change(ctx context.Context, passFile string, change app.AccessChange) error {
	home, err := s.homeDir()
	if err != nil {
		return err
	}
	pass, err := passphrase(passFile)
	if err != nil {
		return err
	}
	res, err := app.ChangeAccess(ctx, home, pass, change)
	if err != nil {
		return err
	}
	switch {
	case s.json:
		s.message(s.policyMessage(res))
	case res.Pending != nil:
		s.proposal(*res.Pending)
		s.hint("the administrators sign it: hallmark policy sign --key FILE")
	default:
		s.print("policy version %d %s", res.Version, res.Digest)
	}
	return nil
}

func accessPrincipalCommand(s *streams) *cobra.Command {
	var passFile string
	var p app.PrincipalChange
	cmd := &cobra.Command{
		Use: "principal NAME", Short: "name a person, robot or workload, or replace what is said of one", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.Name = args[0]
			return s.change(cmd.Context(), passFile, p.Apply)
		}}
	f := cmd.Flags()
	f.StringVar(&p.Kind, "kind", "person", "person, robot or workload")
	f.StringVar(&p.Owner, "owner", "", "the person who answers for a robot or workload")
	f.BoolVar(&p.Outside, "outside", false, "an outside collaborator: nothing of theirs runs or lands unapproved")
	f.StringArrayVar(&p.Aliases, "alias", nil, "another mail address of the same person in commits (repeat)")
	f.StringArrayVar(&p.KeyFiles, "ssh-key", nil, "public key file to sign in with (repeat)")
	f.StringArrayVar(&p.OpenPGPFiles, "openpgp-key", nil, "public OpenPGP key file to sign commits with (repeat)")
	f.StringArrayVar(&p.X509Files, "x509", nil, "file to sign commits by: lines of email:ADDRESS or uri:URI as certificates say it, then the authority's certificate in PEM (repeat)")
	f.StringArrayVar(&p.OIDC, "oidc", nil, "ISSUER#SUBJECT to sign in with (repeat)")
	f.BoolVar(&p.Remove, "remove", false, "remove the principal and its grants")
	passphraseFlag(cmd, &passFile)
	return cmd
}

func accessIssuerCommand(s *streams) *cobra.Command {
	var passFile string
	var c app.IssuerChange
	cmd := &cobra.Command{
		Use: "issuer URL", Short: "list an OpenID Connect issuer that may vouch for principals", Args: cobra.ExactArgs(1),
		Long: `List an OpenID Connect issuer, exactly as its tokens name it. Whom it vouches for is
said by each principal: hallmark access principal NAME --oidc URL#SUBJECT.

A person signs in by a browser (--flow code): every token answers a request of this
server's. A robot shows a token that it was given (--flow token), once.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c.URL = args[0]
			return s.change(cmd.Context(), passFile, c.Apply)
		}}
	f := cmd.Flags()
	f.StringVar(&c.Audience, "audience", "", "whom its tokens must be for: the client id that it knows this server by")
	f.StringVar(&c.Claim, "claim", "sub", "the claim that is the subject of principals")
	f.StringVar(&c.Flow, "flow", "code", "code (persons) or token (robots)")
	f.StringArrayVar(&c.Require, "require", nil, "CLAIM=VALUE that a token must have (repeat)")
	f.BoolVar(&c.Remove, "remove", false, "remove the issuer: nobody signs in by it any more")
	passphraseFlag(cmd, &passFile)
	return cmd
}

func accessTrustDomainCommand(s *streams) *cobra.Command {
	var passFile string
	var c app.TrustDomainChange
	cmd := &cobra.Command{
		Use: "trust-domain NAME", Short: "list a SPIFFE trust domain whose workloads may show a certificate", Args: cobra.ExactArgs(1),
		Long: `List a SPIFFE trust domain with the certificates of its authorities. A workload that
shows a certificate of theirs in TLS (an X.509-SVID) is the principal that its SPIFFE
ID names: hallmark access principal spiffe://NAME/PATH --kind workload --owner NAME.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c.Name = args[0]
			return s.change(cmd.Context(), passFile, c.Apply)
		}}
	cmd.Flags().StringArrayVar(&c.Files, "authority", nil, "PEM file of authorities (repeat)")
	cmd.Flags().BoolVar(&c.Remove, "remove", false, "remove the trust domain: its workloads are nobody any more")
	passphraseFlag(cmd, &passFile)
	return cmd
}

func accessSecondFactorCommand(s *streams) *cobra.Command {
	var passFile string
	var c app.FactorChange
	cmd := &cobra.Command{
		Use: "second-factor ADMINISTRATOR", Short: "name the FIDO keys that an administrator confirms policies by", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c.Administrator = args[0]
			return s.change(cmd.Context(), passFile, c.Apply)
		}}
	cmd.Flags().StringArrayVar(&c.KeyFiles, "key", nil, "public key file of a FIDO key: ssh-keygen -t ed25519-sk (repeat)")
	cmd.Flags().BoolVar(&c.Remove, "remove", false, "remove the administrator's keys")
	passphraseFlag(cmd, &passFile)
	return cmd
}

func accessGrantCommand(s *streams) *cobra.Command {
	var passFile string
	var g access.Grant
	var life time.Duration
	cmd := &cobra.Command{
		Use: "grant PRINCIPAL ROLE", Short: "grant a role on repositories and references", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			g.Principal, g.Role = args[0], access.Role(args[1])
			if g.Reason == "" || len(g.Repositories) == 0 {
				return usagef("access grant: want --reason and --repository; '**' is every repository")
			}
			if life < 0 {
				return usagef("access grant: --for %s", life)
			}
			if life > 0 {
				g.NotAfter = time.Now().UTC().Truncate(time.Second).Add(life)
			}
			id, change, err := app.GrantRole(g)
			if err != nil {
				return err
			}
			s.note("grant %s", id)
			return s.change(cmd.Context(), passFile, change)
		}}
	f := cmd.Flags()
	f.StringArrayVar(&g.Repositories, "repository", nil, "pattern of repository names (repeat)")
	f.StringArrayVar(&g.Refs, "ref", nil, "pattern of full references, such as refs/heads/** (repeat; default all)")
	f.StringArrayVar(&g.Paths, "path", nil, "pattern of the files that a push may change, such as docs/** (repeat; default all)")
	f.StringVar(&g.Reason, "reason", "", "why")
	f.StringVar(&g.Owner, "owner", "", "the person who answers for the grant (default: the principal, or its owner)")
	f.DurationVar(&life, "for", 0, "how long, such as 720h; default until it is revoked")
	passphraseFlag(cmd, &passFile)
	return cmd
}

func accessRevokeCommand(s *streams) *cobra.Command {
	var passFile string
	cmd := &cobra.Command{
		Use: "revoke ID", Short: "take a grant away, or a token", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.HasPrefix(args[0], "t-") {
				home, err := s.homeDir()
				if err != nil {
					return err
				}
				pass, err := passphrase(passFile)
				if err != nil {
					return err
				}
				return app.RevokeToken(cmd.Context(), home, args[0], pass)
			}
			return s.change(cmd.Context(), passFile, app.RevokeGrant(args[0]))
		}}
	passphraseFlag(cmd, &passFile)
	return cmd
}

func accessRefsCommand(s *streams) *cobra.Command {
	var passFile, set string
	cmd := &cobra.Command{
		Use: "refs", Short: "show or set the rules that protect references", Args: cobra.NoArgs,
		Long: `Show the rules that protect references, or set them from a JSON file in the same
form. The first rule that fits counts; what none fits can't be pushed to.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if set != "" {
				return s.change(cmd.Context(), passFile, app.SetRefs(set))
			}
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			a, err := app.Access(home)
			if err != nil {
				return err
			}
			return s.document(a.Section.Refs)
		}}
	cmd.Flags().StringVar(&set, "set", "", "JSON file of rules")
	passphraseFlag(cmd, &passFile)
	return cmd
}

func accessShowCommand(s *streams) *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "print principals, grants and rules as they stand in the policy", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			a, err := app.Access(home)
			if err != nil {
				return err
			}
			return s.document(a.Section)
		}}
}

func accessWhoCanCommand(s *streams) *cobra.Command {
	return &cobra.Command{
		Use: "who-can PERMISSION [REPOSITORY [REF]]", Short: "list who may do something, and by which grant", Args: cobra.RangeArgs(1, 3),
		RunE: func(_ *cobra.Command, args []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			a, err := app.Access(home)
			if err != nil {
				return err
			}
			known := false
			var names []string
			for _, p := range access.Permissions() {
				names = append(names, string(p))
				known = known || string(p) == args[0]
			}
			if !known {
				return hallmark.WithHint(usagef("there is no permission %q", args[0]), "the permissions are "+strings.Join(names, ", "))
			}
			args = append(args, "", "")
			for _, h := range a.Book.WhoCan(access.Permission(args[0]), args[1], args[2], time.Now().UTC()) {
				until := "-"
				if !h.Grant.NotAfter.IsZero() {
					until = h.Grant.NotAfter.Format(time.RFC3339)
				}
				if s.json {
					s.message(map[string]any{"type": "holder", "principal": h.Principal.Name, "kind": h.Principal.Kind, "role": h.Grant.Role, "grant": h.Grant.ID, "owner": h.Grant.Owner, "reason": h.Grant.Reason, "until": until})
					continue
				}
				s.print("%s\t%s\t%s\t%s\tuntil %s\t%s", h.Principal.Name, h.Principal.Kind, h.Grant.Role, h.Grant.ID, until, h.Grant.Reason)
			}
			return nil
		}}
}

func accessTokenCommand(s *streams) *cobra.Command {
	var passFile, repository, out string
	var scopes []string
	var life time.Duration
	cmd := &cobra.Command{
		Use: "token PRINCIPAL", Short: "issue a token for a principal, on the machine of the home", Args: cobra.ExactArgs(1),
		Long: `Issue a token that a principal shows as the password of git or as a bearer's. It
allows at most its scopes, on repositories that fit, and never more than the
principal's own grants. It is shown once; only its digest is kept.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			pass, err := passphrase(passFile)
			if err != nil {
				return err
			}
			if len(scopes) == 0 || repository == "" {
				return usagef("access token: want --scope and --repository; '**' is every repository")
			}
			t, err := app.IssueToken(cmd.Context(), home, pass, args[0], scopes, repository, life)
			if err != nil {
				return err
			}
			if out != "" {
				if err := app.WriteSecret(out, t.Token); err != nil {
					return err
				}
				t.Token = ""
			}
			if s.json {
				s.message(t)
				return nil
			}
			s.note("token %s of %s, until %s", t.ID, t.Principal, t.ExpiresAt.Format(time.RFC3339))
			if t.Token != "" {
				s.print("%s", t.Token)
			}
			return nil
		}}
	f := cmd.Flags()
	f.StringSliceVar(&scopes, "scope", nil, "permissions, such as repository.read,ref.push")
	f.StringVar(&repository, "repository", "", "pattern of repository names")
	f.DurationVar(&life, "for", time.Hour, "how long it is good")
	f.StringVar(&out, "out", "", "write it into a new file instead of printing it")
	passphraseFlag(cmd, &passFile)
	return cmd
}
