// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package vuln

import (
	"math"
	"strings"
)

// baseScore computes the base score of a CVSS v3.0 or v3.1 vector (FIRST, CVSS
// v3.1 specification §7.1).
func baseScore(vector string) (float64, bool) {
	if !strings.HasPrefix(vector, "CVSS:3.") {
		return 0, false
	}
	m := map[string]string{}
	for part := range strings.SplitSeq(vector, "/") {
		if k, v, ok := strings.Cut(part, ":"); ok {
			m[k] = v
		}
	}
	changed := m["S"] == "C"
	weight := func(metric string, values map[string]float64) float64 {
		v, ok := values[m[metric]]
		if !ok {
			return math.NaN()
		}
		return v
	}
	privileges := map[string]float64{"N": 0.85, "L": 0.62, "H": 0.27}
	if changed {
		privileges = map[string]float64{"N": 0.85, "L": 0.68, "H": 0.5}
	}
	impactOf := map[string]float64{"H": 0.56, "L": 0.22, "N": 0}
	iss := 1 - (1-weight("C", impactOf))*(1-weight("I", impactOf))*(1-weight("A", impactOf))
	impact := 6.42 * iss
	if changed {
		impact = 7.52*(iss-0.029) - 3.25*math.Pow(iss-0.02, 15)
	}
	exploit := 8.22 * weight("AV", map[string]float64{"N": 0.85, "A": 0.62, "L": 0.55, "P": 0.2}) *
		weight("AC", map[string]float64{"L": 0.77, "H": 0.44}) * weight("PR", privileges) * weight("UI", map[string]float64{"N": 0.85, "R": 0.62})
	if math.IsNaN(impact) || math.IsNaN(exploit) || (m["S"] != "U" && m["S"] != "C") {
		return 0, false
	}
	if impact <= 0 {
		return 0, true
	}
	score := impact + exploit
	if changed {
		score *= 1.08
	}
	return math.Ceil(math.Min(score, 10)*10-1e-9) / 10, true
}
