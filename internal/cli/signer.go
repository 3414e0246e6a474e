// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/hallmark-sc/hallmark/internal/app"
)

func signerCommand(s *streams) *cobra.Command {
	var passFile, socket, forUser string
	cmd := &cobra.Command{
		Use: "signer", Short: "hold the keys of a server, as a user of their own", Args: cobra.NoArgs,
		Long: `Hold keys, log and fork guard of this home for hallmark serve, as a process of
another user behind a Unix socket. It signs for the server's identities only, and
provenance only with a permit for that one statement and the observations of the
same build, which it signed before. Prepare the home once, as root:

    hallmark signer prepare --user hallmark-signer

hallmark serve starts it by itself where its configuration says signer: {user: NAME}.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			if forUser == "" {
				return usagef("signer needs --for USER: the user whom the server runs as")
			}
			uid, err := app.UserID(forUser)
			if err != nil {
				return err
			}
			pass, err := passphrase(passFile)
			if err != nil {
				return err
			}
			return app.RunSigner(cmd.Context(), app.SignerConfig{
				Home: home, Passphrase: pass, Socket: socket, For: uid, Log: slog.New(slog.NewJSONHandler(s.err, nil)),
				Ready: func(socket string) {
					if s.json {
						s.message(map[string]any{"type": "signing", "socket": socket, "for": uid})
						return
					}
					s.print("signing at %s for user %d", socket, uid)
				},
			})
		}}
	cmd.Flags().StringVar(&socket, "socket", "", "PATH of the socket; the default is signer/socket in the home")
	cmd.Flags().StringVar(&forUser, "for", "", "USER whom the server runs as, by name or number: nobody else is answered")
	passphraseFlag(cmd, &passFile)
	cmd.AddCommand(signerPrepareCommand(s))
	return cmd
}

func signerPrepareCommand(s *streams) *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use: "prepare", Short: "give keys, log and fork guard to the signer's user", Args: cobra.NoArgs,
		Long: `Give keys, log and fork guard of this home to the user of its signer, and let
that user through the home. Run as root, as often as you like.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := s.homeDir()
			if err != nil {
				return err
			}
			if user == "" {
				return usagef("signer prepare needs --user NAME: a user that nothing else runs as")
			}
			p, err := app.PrepareSigner(cmd.Context(), home, user)
			if err != nil {
				return err
			}
			if s.json {
				s.message(map[string]any{"type": "prepared", "uid": p.UID, "gid": p.GID, "socket": p.Socket})
				return nil
			}
			s.print("keys, log and fork guard are of user %d", p.UID)
			s.print("socket %s", p.Socket)
			return nil
		}}
	cmd.Flags().StringVar(&user, "user", "", "NAME or number of a user that nothing else runs as")
	return cmd
}
