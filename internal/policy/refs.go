// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"
)

// parseRefs reads a list of full reference names; none is an empty list. There
// are no patterns: whoever may make a branch would choose a name that fits.
func parseRefs(s string) ([]string, error) {
	if s == "none" {
		return nil, nil
	}
	refs := splitList(s)
	if len(refs) == 0 {
		return nil, fmt.Errorf("want none or a list of refs")
	}
	for _, r := range refs {
		if !strings.HasPrefix(r, "refs/") || strings.ContainsAny(r, "*?[\\ ~^:") {
			return nil, fmt.Errorf("%q: want a full ref such as refs/heads/main", r)
		}
	}
	return refs, nil
}
