// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"

	"github.com/hallmark-sc/hallmark"
)

// parseBinaries reads the approved files of compiled code, or none.
func parseBinaries(s string) ([]hallmark.Digest, error) {
	if s == "none" {
		return nil, nil
	}
	if err := nonEmpty(s); err != nil {
		return nil, err
	}
	var out []hallmark.Digest
	for _, b := range splitList(s) {
		d, err := hallmark.ParseDigest(b)
		if err != nil {
			return nil, fmt.Errorf("%.120q: want none, or sha256:HEX of each file", b)
		}
		out = append(out, d)
	}
	return out, nil
}
