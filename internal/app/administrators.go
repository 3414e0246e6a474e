// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"os"
	"strings"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/sign"
)

// maxAdministrators is far below what a verifier takes of signatures.
const maxAdministrators = 32

// administratorsOf reads who shall administer a new home. Whatever would make
// fewer persons of them than it looks like is refused by name.
func administratorsOf(cfg InitConfig) ([]administrator, error) {
	usage := func(format string, args ...any) ([]administrator, error) {
		return nil, hallmark.Errorf(hallmark.KindUsage, format, args...)
	}
	if cfg.SingleOperator {
		switch {
		case cfg.Threshold != 0:
			return usage("--threshold %d: a single operator has none", cfg.Threshold)
		case len(cfg.Administrators) > 1:
			return usage("--single-operator with %d administrators: %s", len(cfg.Administrators), strings.Join(cfg.Administrators, ", "))
		case len(cfg.Administrators) == 0:
			return nil, nil
		case strings.Contains(cfg.Administrators[0], "="):
			return usage("administrator %s: a single operator's key is made in the home, so none is given", cfg.Administrators[0])
		}
		return []administrator{{name: cfg.Administrators[0]}}, sign.CheckAdministrator(cfg.Administrators[0])
	}
	if len(cfg.Administrators) == 0 {
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "a home needs two or more administrators with a key each, or a single operator"),
			"say --administrator NAME=FILE twice or more and --threshold N (hallmark policy key makes the keys), or --single-operator: every verdict will note it, and two-person rows are never satisfied")
	}
	var all []administrator
	for _, text := range cfg.Administrators {
		a, err := readAdministrator(text)
		if err != nil {
			return nil, err
		}
		for _, other := range all {
			if strings.EqualFold(other.name, a.name) {
				return usage("administrator %s is named twice", a.name)
			}
			if other.hint == a.hint {
				return usage("administrators %s and %s have the same key", other.name, a.name)
			}
		}
		all = append(all, a)
	}
	switch n := len(all); {
	case n == 1:
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "administrator %s is alone: a home needs two or more, or a single operator", all[0].name),
			"name another --administrator NAME=FILE, or say --single-operator")
	case n > maxAdministrators:
		return usage("%d administrators: the limit is %d", n, maxAdministrators)
	case cfg.Threshold < 2 || cfg.Threshold > n:
		return usage("--threshold %d of %d administrators: want 2 to %d", cfg.Threshold, n, n)
	}
	return all, nil
}

func readAdministrator(text string) (administrator, error) {
	name, path, found := strings.Cut(text, "=")
	if err := sign.CheckAdministrator(name); err != nil {
		return administrator{}, err
	}
	if !found || path == "" {
		return administrator{}, hallmark.WithHint(hallmark.Errorf(hallmark.KindUsage, "administrator %s has no key", name),
			"make one with hallmark policy key "+name+" --out FILE and say --administrator "+name+"=FILE.pub")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return administrator{}, hallmark.Errorf(hallmark.KindInvalid, "reading the key of administrator %s: %w", name, err)
	}
	pub, owner, err := sign.ParsePolicyPublic(path, b)
	if err != nil {
		return administrator{}, hallmark.Errorf(hallmark.KindInvalid, "administrator %s: %w", name, err)
	}
	if owner != "" && owner != name {
		return administrator{}, hallmark.Errorf(hallmark.KindUsage, "administrator %s: %s says that it is the key of %s", name, path, owner)
	}
	return administrator{name: name, hint: pub.Hint, pem: pub.PEM}, nil
}
