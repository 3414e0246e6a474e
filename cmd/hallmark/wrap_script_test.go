// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"

	"github.com/rogpeppe/go-internal/testscript"
)

// payloads EVIDENCE FILE writes what is signed, a statement a line.
func cmdPayloads(ts *testscript.TestScript, _ bool, args []string) {
	var out bytes.Buffer
	for _, l := range readLines(ts, ts.MkAbs(args[0])) {
		out.Write(payloadOf(ts, l))
		out.WriteByte('\n')
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), out.Bytes(), 0o644))
}
