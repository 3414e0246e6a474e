// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
)

func policyCommand(s *streams) *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "show, change and sign the policy", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(policySetCommand(s), policyShowCommand(s), policyKeyCommand(s), policySignCommand(s), policyConfirmCommand(s), policyToolsCommand(s))
	return cmd
}

// policySignersKey is no parameter: signers come from a file that was parsed.
const policySignersKey = "allowedSigners"

// policyBuildKey is no parameter either: rules come from a file.
const policyBuildKey = "build"

func policySetCommand(s *streams) *cobra.Command {
	var passFile, signers, rules, pgp, certs string
	var inventories []string
	set := &cobra.Command{
		Use: "set [KEY=VALUE…]", Short: "change parameters or signers: sign the next version, or propose it to the administrators",
		Long: `Change parameters of the policy, with --allowed-signers who may sign commits, or with
--build the rules of what may be built (hallmark policy show --build prints those
in force). In a home with a single operator the next
version is signed and in force. Where there are several administrators it waits
until enough of them signed it (hallmark policy sign); a proposal that waited
before is replaced.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			pass, err := passphrase(passFile)
			if err != nil {
				return err
			}
			var changes [][2]string
			if signers != "" {
				c, err := app.ReadSigners(signers)
				if err != nil {
					return err
				}
				changes = append(changes, c)
			}
			for _, more := range []struct {
				file string
				read func(string) ([2]string, error)
			}{{pgp, app.ReadOpenPGPKeys}, {certs, app.ReadX509Signers}} {
				if more.file == "" {
					continue
				}
				c, err := more.read(more.file)
				if err != nil {
					return err
				}
				changes = append(changes, c)
			}
			if rules != "" || len(inventories) > 0 {
				c, err := app.ReadBuild(cmd.Context(), home, rules, inventories)
				if err != nil {
					return err
				}
				changes = append(changes, c)
			}
			if len(args) == 0 && len(changes) == 0 {
				return hallmark.WithHint(usagef("policy set: nothing to change"), "hallmark policy set KEY=VALUE, --allowed-signers FILE, or --build FILE")
			}
			for _, a := range args {
				k, v, ok := strings.Cut(a, "=")
				if !ok || k == policySignersKey || k == "openpgpKeys" || k == "x509Signers" || k == policyBuildKey {
					return usagef("policy set %q: want KEY=VALUE; signers are changed with --allowed-signers FILE, rules of builds with --build FILE", a)
				}
				changes = append(changes, [2]string{k, v})
			}
			res, err := app.PolicySet(cmd.Context(), home, pass, changes)
			if err != nil {
				return err
			}
			if s.json {
				s.message(s.policyMessage(res))
				return nil
			}
			if old := res.Replaced; old != nil {
				by := "nobody had signed"
				if len(old.Signed) > 0 {
					by = strings.Join(old.Signed, ", ") + " had signed"
				}
				s.note("replaced the pending version %d %s, which %s", old.Version, old.Digest, by)
			}
			if res.Pending != nil {
				s.proposal(*res.Pending)
				s.hint("the administrators sign it: hallmark policy sign --key FILE")
				return nil
			}
			s.print("policy version %d %s", res.Version, res.Digest)
			return nil
		}}
	set.Flags().StringVar(&signers, "allowed-signers", "", "OpenSSH allowed_signers file that replaces the allowed signers of the policy")
	set.Flags().StringVar(&pgp, "openpgp-keys", "", "file of OpenPGP keys that sign commits: lines of PRINCIPALS FINGERPRINT, and the armored public keys")
	set.Flags().StringVar(&certs, "x509-signers", "", "file of who signs commits by certificate: lines of PRINCIPALS email:ADDRESS|uri:URI AUTHORITY, and the authorities' certificates in PEM")
	set.Flags().StringVar(&rules, "build", "", "file, YAML or JSON, of the rules of what may be built")
	set.Flags().StringArrayVar(&inventories, "inventory", nil, "NAME=FILE of an inventory of tools that the rules name (repeat); hallmark policy tools makes one")
	passphraseFlag(set, &passFile)
	return set
}

func policyToolsCommand(s *streams) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "tools", Short: "list the programs and libraries of builds on this machine, with their digests", Args: cobra.NoArgs,
		Long: `List every program that a build on this machine can run, and every library and
plug-in that it can load, with path and digest. With --out it writes the inventory that the rules of builds name:

    hallmark policy tools --out tools.json
    hallmark policy set --build build.yaml --inventory host=tools.json

Look it over before you approve it: it says what is there, not that it is good.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			inv, err := app.ToolInventory(cmd.Context())
			if err != nil {
				return err
			}
			raw, err := inv.Encode()
			if err != nil {
				return err
			}
			if out == "" {
				_, err := s.out.Write(raw)
				return err
			}
			if err := os.WriteFile(out, raw, 0o644); err != nil {
				return hallmark.Errorf(hallmark.KindInvalid, "writing the inventory: %w", err)
			}
			digest := hallmark.DigestOf(raw)
			if s.json {
				s.message(map[string]any{"type": "tool-inventory", "digest": digest, "programs": len(inv.Programs), "libraries": len(inv.Libraries), "path": out})
				return nil
			}
			s.print("inventory %s  %d programs, %d libraries", digest, len(inv.Programs), len(inv.Libraries))
			s.hint("look it over, then: hallmark policy set --build FILE --inventory NAME=%s", out)
			return nil
		}}
	cmd.Flags().StringVar(&out, "out", "", "file to write the inventory to (default: print it)")
	return cmd
}

func policyShowCommand(s *streams) *cobra.Command {
	var rules bool
	show := &cobra.Command{Use: "show", Short: "print the signed policy, and what waits for signatures", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			if rules {
				text, inForce, err := app.BuildRules(home)
				if err != nil {
					return err
				}
				if !inForce {
					s.note("the policy has no rules for builds, so nothing is built; these are the ones that a new home begins with")
				}
				_, err = s.out.Write(text)
				return err
			}
			res, err := app.PolicyShow(cmd.Context(), home)
			if err != nil {
				return err
			}
			if s.json {
				s.message(s.policyMessage(res))
				return nil
			}
			if res.Version > 0 {
				s.print("policy version %d %s", res.Version, res.Digest)
				s.print("signed by %s", strings.Join(res.SignedBy, ", "))
			} else {
				s.print("no policy is in force")
			}
			for _, p := range res.Parameters {
				s.print("  %-24s %s", p.Key, p.Value)
			}
			for _, line := range res.Signers {
				s.print("allowed signer: %s", line)
			}
			for _, r := range res.Build {
				s.print("  %s: %s", r.Key, r.Value)
			}
			if res.Version > 0 && len(res.Build) == 0 {
				s.note("the policy has no rules for builds, so nothing is built: hallmark policy show --build")
			}
			if res.Pending != nil {
				s.proposal(*res.Pending)
			}
			if res.Invalid != "" {
				s.note("%s", res.Invalid)
			}
			return nil
		}}
	show.Flags().BoolVar(&rules, "build", false, "print the rules of what may be built as a file to edit")
	return show
}

func policyKeyCommand(s *streams) *cobra.Command {
	var out, passFile string
	cmd := &cobra.Command{
		Use: "key NAME", Short: "make an administrator's key pair", Args: cobra.ExactArgs(1),
		Long: `Make the key pair of an administrator: the private half in FILE, readable by its
owner only and encrypted when a passphrase is given, the public half in FILE.pub,
for hallmark init --administrator NAME=FILE.pub. No file is replaced. Keep FILE
outside the home: who holds a threshold of these keys decides what is allowed.`,
		RunE: func(_ *cobra.Command, args []string) error {
			if out == "" {
				return usagef("policy key: want --out FILE")
			}
			pass, err := passphrase(passFile)
			if err != nil {
				return err
			}
			hint, err := app.PolicyKey(args[0], out, pass)
			if err != nil {
				return err
			}
			if s.json {
				s.message(map[string]any{"type": "policy-key", "administrator": args[0], "hint": hint, "key": out, "public": out + ".pub", "encrypted": len(pass) > 0})
				return nil
			}
			s.print("key of %s %s", args[0], hint)
			s.print("  %s      keep it to yourself", out)
			s.print("  %s.pub  for hallmark init --administrator %s=%s.pub", out, args[0], out)
			if len(pass) == 0 {
				s.note("the key is not encrypted: whoever reads %s can sign as %s", out, args[0])
			}
			return nil
		}}
	cmd.Flags().StringVar(&out, "out", "", "file of the private half; the public half goes to FILE.pub")
	passphraseFlag(cmd, &passFile)
	return cmd
}

func policySignCommand(s *streams) *cobra.Command {
	var cfg app.SignConfig
	var passFile, homePassFile, digest, factor string
	cmd := &cobra.Command{
		Use: "sign", Short: "sign the pending policy as an administrator", Args: cobra.NoArgs,
		Long: `Sign the pending policy with an administrator's key: the genesis and first policy
of a new home, or what hallmark policy set proposed. What is signed is shown
first; on a terminal the command asks before it signs. --digest signs only the
proposal with this digest, such as one that was reviewed elsewhere. When enough
administrators signed, the policy is in force.`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cfg.Home, err = s.homeDir(); err != nil {
				return err
			}
			if cfg.Key == "" {
				return usagef("policy sign: want --key FILE")
			}
			if cfg.KeyPassphrase, err = passphrase(passFile); err != nil {
				return err
			}
			if cfg.HomePassphrase, err = passphrase(homePassFile); err != nil {
				return err
			}
			if factor != "" {
				if cfg.SecondFactor, err = os.ReadFile(factor); err != nil {
					return hallmark.Errorf(hallmark.KindInvalid, "reading the second factor: %w", err)
				}
			}
			p, err := app.PolicyReview(cmd.Context(), cfg.Home)
			if err != nil {
				return err
			}
			cfg.Digest = p.Digest
			if digest != "" {
				if cfg.Digest, err = hallmark.ParseDigest(digest); err != nil {
					return usagef("--digest: %s", err)
				}
			}
			if s.json {
				s.message(proposalMessage("policy-review", p))
			} else {
				s.proposal(p)
			}
			if err := s.agree(); err != nil {
				return err
			}
			res, err := app.PolicySign(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if s.json {
				s.message(map[string]any{"type": "policy-signature", "administrator": res.Administrator, "version": res.Version, "digest": res.Digest,
					"inForce": res.InForce, "signed": res.Signed, "threshold": res.Threshold})
				return nil
			}
			s.print("signed by %d of %d: %s", len(res.Signed), res.Threshold, strings.Join(res.Signed, ", "))
			if res.InForce {
				s.print("policy version %d %s is in force", res.Version, res.Digest)
				return nil
			}
			s.hint("not in force yet; one of %s signs: hallmark policy sign --key FILE", strings.Join(res.Others, ", "))
			return nil
		}}
	f := cmd.Flags()
	f.StringVar(&cfg.Key, "key", "", "file of the administrator's private key")
	f.StringVar(&factor, "second-factor", "", "file of a FIDO key's signature over what hallmark policy confirm wrote")
	f.StringVar(&digest, "digest", "", "sign only the proposal with this digest")
	f.StringVar(&passFile, "passphrase-file", "", "file whose first line is the passphrase of the administrator's key (or $HALLMARK_PASSPHRASE_FILE, $HALLMARK_PASSPHRASE)")
	f.StringVar(&homePassFile, "home-passphrase-file", "", "file whose first line is the passphrase of the home's keys, which log the signature (or the same variables)")
	return cmd
}

func policyConfirmCommand(s *streams) *cobra.Command {
	var as, out string
	cmd := &cobra.Command{
		Use: "confirm", Short: "write what an administrator's FIDO key signs of the pending policy", Args: cobra.NoArgs,
		Long: `Write the text that a FIDO key signs to confirm the pending policy, where the policy
in force requires a second factor (access.secondFactor):

    hallmark policy confirm --as NAME --out FILE
    ssh-keygen -Y sign -n hallmark-policy -f ~/.ssh/id_ed25519_sk FILE
    hallmark policy sign --key KEY --second-factor FILE.sig`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			if as == "" || out == "" {
				return usagef("policy confirm: want --as and --out")
			}
			text, err := app.PolicyConfirmation(cmd.Context(), home, as)
			if err != nil {
				return err
			}
			if err := os.WriteFile(out, text, 0o600); err != nil {
				return hallmark.Errorf(hallmark.KindInvalid, "writing the confirmation: %w", err)
			}
			s.hint("ssh-keygen -Y sign -n hallmark-policy -f SECURITY-KEY %s", out)
			return nil
		}}
	cmd.Flags().StringVar(&as, "as", "", "the administrator, as the roots name them")
	cmd.Flags().StringVar(&out, "out", "", "file for the text")
	return cmd
}

// agree asks a person at a terminal; a script has agreed by calling.
func (s *streams) agree() error {
	in, ok := s.in.(*os.File)
	if !ok || s.json || !term.IsTerminal(int(in.Fd())) {
		return nil
	}
	s.note("sign this? yes or no")
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "yes" {
		return hallmark.Errorf(hallmark.KindInvalid, "nothing was signed")
	}
	return nil
}

// proposal prints what waits for signatures, whole.
func (s *streams) proposal(p app.Proposal) {
	s.print("pending policy version %d %s", p.Version, p.Digest)
	if p.Genesis {
		s.print("  with the genesis of roots %s", p.Roots)
		s.print("  threshold: %d of %d administrators", p.Threshold, len(p.Keys))
		for _, k := range p.Keys {
			s.print("  administrator: %s %s", k.Key, k.Value)
		}
	} else {
		s.print("  after %s", p.Previous)
	}
	for _, c := range p.Changes {
		switch {
		case c.From == "":
			s.print("  %s: + %s", c.Field, oneLine(c.To))
		case c.To == "":
			s.print("  %s: - %s", c.Field, oneLine(c.From))
		default:
			s.print("  %s: %s -> %s", c.Field, oneLine(c.From), oneLine(c.To))
		}
	}
	signed := "nobody"
	if len(p.Signed) > 0 {
		signed = strings.Join(p.Signed, ", ")
	}
	s.print("  signed by %s, %d of %d; can sign: %s", signed, len(p.Signed), p.Threshold, strings.Join(p.Others, ", "))
}

// oneLine keeps a value from looking like several lines of ours.
func oneLine(v string) string {
	if strings.ContainsAny(v, "\n\r") {
		return strconv.Quote(v)
	}
	return v
}

func proposalMessage(kind string, p app.Proposal) map[string]any {
	return map[string]any{"type": kind, "genesis": p.Genesis, "version": p.Version, "digest": p.Digest, "previous": p.Previous, "roots": p.Roots,
		"threshold": p.Threshold, "signed": p.Signed, "unsigned": p.Others, "changes": p.Changes}
}

func (s *streams) policyMessage(res app.PolicyState) map[string]any {
	m := map[string]any{"type": "policy", "version": res.Version, "digest": res.Digest}
	if res.Parameters != nil {
		m["parameters"], m["allowedSigners"], m["signedBy"] = res.Parameters, res.Signers, res.SignedBy
		m["build"] = res.Build
	}
	if res.Pending != nil {
		m["pending"] = proposalMessage("policy-review", *res.Pending)
	}
	if res.Replaced != nil {
		m["replaced"] = res.Replaced.Digest
	}
	if res.Invalid != "" {
		m["invalid"] = res.Invalid
	}
	return m
}
