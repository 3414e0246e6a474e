// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark/internal/app"
)

func serveCommand(s *streams) *cobra.Command {
	var passFile, config, listen string
	cmd := &cobra.Command{
		Use: "serve", Short: "serve git repositories behind the gates", Args: cobra.NoArgs,
		Long: `Serve the repositories of this home over HTTPS to stock git clients. Every push
is judged before anything of it becomes reachable; every reference that moves is
logged first. Who may do what stands in the signed policy (hallmark access).

Without a certificate of your own the server makes an authority, whose
certificate clients trust: git config http.sslCAInfo FILE.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			pass, err := passphrase(passFile)
			if err != nil {
				return err
			}
			file := app.DefaultServerFile()
			if config != "" {
				if file, err = app.ReadServerFile(config); err != nil {
					return err
				}
			}
			if listen != "" {
				file.Listen = listen
				if err := file.Check("--listen"); err != nil {
					return err
				}
			}
			return app.Serve(cmd.Context(), app.ServeConfig{
				Home: home, Passphrase: pass, Config: file, Log: slog.New(slog.NewJSONHandler(s.err, nil)),
				Ready: func(url, authority string) {
					if s.json {
						s.message(map[string]any{"type": "serving", "url": url, "authority": authority})
						return
					}
					s.print("serving %s", url)
					s.print("authority %s", authority)
				},
			})
		}}
	cmd.Flags().StringVar(&config, "config", "", "configuration file, YAML; hallmark schema serve prints what there is")
	cmd.Flags().StringVar(&listen, "listen", "", "ADDRESS:PORT instead of that of the configuration; port 0 takes a free one")
	passphraseFlag(cmd, &passFile)
	return cmd
}

func repositoryCommand(s *streams) *cobra.Command {
	cmd := &cobra.Command{Use: "repository", Short: "make and list git repositories of this home", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var passFile, branch string
	var upstream app.UpstreamConfig
	create := &cobra.Command{
		Use: "create NAME", Short: "make an empty repository", Args: cobra.ExactArgs(1),
		Long: `Make an empty repository. With --upstream, whatever the gate lets through is
forwarded to that repository at another forge before a reference moves here; it
must be empty too. What has branches already: hallmark repository import.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			pass, err := passphrase(passFile)
			if err != nil {
				return err
			}
			uri, err := app.CreateRepository(cmd.Context(), home, args[0], branch, upstream, pass)
			if err != nil {
				return err
			}
			if s.json {
				s.message(map[string]any{"type": "repository", "name": args[0], "uri": uri})
				return nil
			}
			s.print("%s %s", args[0], uri)
			return nil
		}}
	create.Flags().StringVar(&branch, "branch", "main", "its first branch")
	upstreamFlags(create, &upstream)
	passphraseFlag(create, &passFile)
	list := &cobra.Command{
		Use: "list", Short: "list the repositories", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			names, uris, err := app.Repositories(home)
			if err != nil {
				return err
			}
			for i, n := range names {
				if s.json {
					s.message(map[string]any{"type": "repository", "name": n, "uri": uris[i]})
					continue
				}
				s.print("%s %s", n, uris[i])
			}
			return nil
		}}
	cmd.AddCommand(create, repositoryImportCommand(s), list, repositoryExpungeCommand(s))
	return cmd
}

func repositoryImportCommand(s *streams) *cobra.Command {
	var passFile string
	var upstream app.UpstreamConfig
	cmd := &cobra.Command{
		Use: "import NAME [PATH]", Short: "take an existing repository over, once its whole history was looked at", Args: cobra.RangeArgs(1, 2),
		Long: `Take over a repository, bare or not, under a new name. Every object of it is looked
at before anybody can see it: secrets, file names, links, submodules, compiled
code. Its commits need no signature; what is pushed from then on does.

With --upstream and no PATH, what that repository at another forge shows is
imported, and whatever the gate lets through from then on is forwarded there.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			pass, err := passphrase(passFile)
			if err != nil {
				return err
			}
			from := ""
			if len(args) == 2 {
				from = args[1]
			} else if upstream.URL == "" {
				return usagef("repository import: want PATH or --upstream URL")
			}
			r, err := app.ImportRepository(cmd.Context(), home, args[0], from, upstream, pass)
			if err != nil {
				return err
			}
			if s.json {
				s.message(map[string]any{"type": "import", "name": args[0], "uri": r.URI, "references": r.Refs, "commits": r.Commits, "unsigned": r.Unsigned, "allowed": r.Decision.Allowed(), "reasons": r.Decision.Reasons})
			}
			if !r.Decision.Allowed() {
				if !s.json {
					s.print("refused: nothing was taken over")
					s.reasons(r.Decision.Reasons)
				}
				return errDenied
			}
			if !s.json {
				s.print("%s %s: %d references, %d commits, %d of them signed by nobody whom the policy allows", args[0], r.URI, r.Refs, r.Commits, r.Unsigned)
			}
			return nil
		}}
	upstreamFlags(cmd, &upstream)
	passphraseFlag(cmd, &passFile)
	return cmd
}

func upstreamFlags(cmd *cobra.Command, to *app.UpstreamConfig) {
	cmd.Flags().StringVar(&to.URL, "upstream", "", "URL of the repository at another forge that is forwarded to")
	cmd.Flags().StringVar(&to.TokenFile, "upstream-token-file", "", "file with a token that may push there, readable by you alone")
	cmd.Flags().StringVar(&to.User, "upstream-user", "", "name that goes with the token, where the forge asks for one")
	cmd.Flags().StringVar(&to.Authority, "upstream-authority", "", "file of the certificates to trust there, instead of the machine's")
}
