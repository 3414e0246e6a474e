// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"

	"github.com/rogpeppe/go-internal/testscript"
)

// payload BUNDLE FILE writes the statement of a bundle to FILE.
func cmdPayload(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), payloadOf(ts, string(b)), 0o644))
}
