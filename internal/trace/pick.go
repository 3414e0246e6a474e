// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package trace

// Pick is the engine that will be used where e is asked for. A sandbox must know
// it before its filter is made: calls that the filter hands to a tracer fail when
// there is none.
func Pick(e Engine) Engine {
	if e == Best {
		return Ptrace
	}
	return e
}
