// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"io"

	"github.com/hallmark-sc/hallmark/internal/intake"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/sbom"
	"github.com/hallmark-sc/hallmark/internal/scan"
	"github.com/hallmark-sc/hallmark/internal/scan/sast"
	"github.com/hallmark-sc/hallmark/internal/scan/secrets"
	"github.com/hallmark-sc/hallmark/internal/scan/vuln"
	"github.com/hallmark-sc/hallmark/internal/trace"
)

// Alias runs the binary as what its name says: the first process of a sandbox or
// a keyless worker inside one. ok is false for any other name.
func Alias(name string, args []string, stdin io.Reader, stdout, stderr io.Writer) (code int, ok bool) {
	switch name {
	case trace.Alias:
		return trace.Main(), true
	case sandbox.Alias:
		return sandbox.Main(), true
	case sandbox.WrapAlias:
		return sandbox.WrapMain(), true
	case scan.Alias:
		trace.CollectGarbage()
	default:
		return 0, false
	}
	var err error
	job := ""
	if len(args) > 0 {
		job = args[0]
		args = args[1:]
	}
	switch job {
	case secrets.JobName:
		err = secrets.WorkerMain(args, stdin, stdout)
	case sast.JobName:
		err = sast.WorkerMain(args, stdout)
	case sbom.JobName:
		err = sbom.WorkerMain(args, stdout)
	case sbom.ImageJobName:
		err = sbom.ImageWorkerMain(args, stdout)
	case vuln.JobName:
		err = vuln.WorkerMain(stdin, stdout)
	case intake.JobName:
		err = intake.WorkerMain(stdin, stderr)
	default:
		err = fmt.Errorf("there is no worker %q", job)
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1, true
	}
	return 0, true
}
