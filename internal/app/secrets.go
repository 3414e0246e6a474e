// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/build"
)

// EgressAlert is one attempt to leave a sandbox, told while its step still runs.
type EgressAlert struct {
	Step string
	build.Egress
}

// givenToBuild is what a run hands to its build beside the revision.
type givenToBuild struct {
	secrets map[string][]byte
	alert   func(step string, e build.Egress)
}

func given(cfg RunConfig) (givenToBuild, error) {
	g := givenToBuild{secrets: map[string][]byte{}}
	if cfg.Alert != nil {
		g.alert = func(step string, e build.Egress) { cfg.Alert(EgressAlert{Step: step, Egress: e}) }
	}
	for _, s := range cfg.Secrets {
		name, file, ok := strings.Cut(s, "=")
		if !ok || file == "" {
			return g, hallmark.Errorf(hallmark.KindUsage, "--secret %q: want NAME=FILE", name)
		}
		if _, twice := g.secrets[name]; twice {
			return g, hallmark.Errorf(hallmark.KindUsage, "--secret %s is given twice", name)
		}
		value, err := readSecret(name, file)
		if err != nil {
			return g, err
		}
		g.secrets[name] = value
	}
	return g, nil
}

// readSecret reads a file that nobody but its owner, who is us, may read or
// change.
func readSecret(name, file string) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading secret %s: %w", name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading secret %s: %w", name, err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 || int(sys.Uid) != os.Geteuid() {
		return nil, hallmark.WithHint(hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSecretUnfit, "secret %s: %s is not a regular file that only its owner, who runs this, can read (mode %s)", name, file, st.Mode()),
			"chmod 600 "+file)
	}
	value, err := io.ReadAll(io.LimitReader(f, build.MaxSecret+1))
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading secret %s: %w", name, err)
	}
	return value, build.CheckSecret(name, value)
}
