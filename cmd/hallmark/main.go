// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Command hallmark is zero-trust CI/CD in one binary: it takes a revision from
// commit to verdict, and lets anyone verify that verdict offline. The same
// binary, started under another name, is the sandbox's first process and the
// keyless worker inside it.
package main

import (
	"os"

	"github.com/hallmark-sc/hallmark/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args, os.Stdin, os.Stdout, os.Stderr)) }
