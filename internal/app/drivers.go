// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/sandbox"
	"github.com/hallmark-sc/hallmark/internal/scan/sast"
)

// driverFindings says which external tools there are, which the policy of the
// home enables, and the command that enables one.
func driverFindings(home string) []Finding {
	// Without a home, or with one that can't be read, no driver is enabled.
	pins := map[string]hallmark.Digest{}
	if h, err := readHome(home); err == nil {
		pins = h.params.Drivers
		h.Close()
	}
	var out []Finding
	for _, d := range sast.Drivers() {
		f := Finding{Name: "sast driver " + d.Name}
		pin, enabled := pins[d.Name]
		f.Needed = enabled
		in, err := d.Inspect(sandbox.Find)
		switch {
		case err != nil:
			f.Detail, f.Fix = err.Error(), d.Install
		case !enabled:
			f.Detail = fmt.Sprintf("for %s; %s is %s, not enabled", strings.Join(d.Languages, ", "), in.Path, in.Digest)
			f.Fix = sast.SetCommand(pins, d.Name, in.Digest)
		case pin != in.Digest:
			f.Detail = fmt.Sprintf("%s is %s, the policy pins %s", in.Path, in.Digest, pin)
			f.Fix = "find out who changed it; if that was wanted: " + sast.SetCommand(pins, d.Name, in.Digest)
		default:
			f.OK = true
			f.Detail = fmt.Sprintf("for %s; %s is what the policy pins", strings.Join(d.Languages, ", "), in.Path)
		}
		out = append(out, f)
	}
	return out
}
