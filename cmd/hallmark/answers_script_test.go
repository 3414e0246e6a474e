// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hallmark-sc/hallmark/internal/forge/forgetest"
)

// answers FILE starts a forge that gives recorded answers and sets FORGE to its URL.
// A change that was not recorded is refused.
func cmdAnswers(ts *testscript.TestScript, _ bool, args []string) {
	s, err := forgetest.Replay(filepath.Join(ts.Getenv("RECORDED"), args[0]))
	ts.Check(err)
	ts.Defer(s.Close)
	ts.Setenv("FORGE", s.URL)
}
