// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// blab is an engine whose steps print every secret that the build has, and keep
// what they were given.
type blab struct {
	all   map[string][]byte
	given [][]string
}

func (e *blab) Run(_ context.Context, c Command, out io.Writer) (CommandReport, error) {
	var names []string
	for _, s := range c.Secrets {
		names = append(names, s.Name+"="+string(s.Value))
	}
	for _, v := range c.Env {
		if strings.Contains(v, "value-of") {
			return CommandReport{}, fmt.Errorf("a value in the environment: %s", v)
		}
	}
	e.given = append(e.given, names)
	for _, v := range e.all {
		fmt.Fprintf(out, "have %s\n", v)
	}
	c.Alert(Egress{Address: "192.0.2.1:1"})
	return CommandReport{}, nil
}

func TestStepsGetTheSecretsTheyName(t *testing.T) {
	p, err := ParsePipeline("p", []byte("apiVersion: hallmark/v1\nkind: Pipeline\nbuild:\n  steps:\n    - {run: a, secrets: [TOKEN, OTHER]}\n    - {run: b}\n    - {run: c, secrets: [OTHER]}\n  artifacts: [x]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Needs(); !slices.Equal(got, []string{"TOKEN", "OTHER"}) {
		t.Errorf("needs %q", got)
	}
	all := map[string][]byte{"TOKEN": []byte("value-of-token"), "OTHER": []byte("value-of-other"), "UNUSED": []byte("value-of-unused")}
	e := &blab{all: all}
	var alerts []string
	res, err := Run(t.Context(), e, p, Given{Timeout: time.Minute, Secrets: all, Alert: func(step string, e Egress) { alerts = append(alerts, step+" "+e.Address) }}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{{"TOKEN=value-of-token", "OTHER=value-of-other"}, nil, {"OTHER=value-of-other"}}
	if !slices.EqualFunc(e.given, want, slices.Equal) {
		t.Errorf("given %q", e.given)
	}
	for _, s := range res.Steps {
		if strings.Contains(string(s.Log), "value-of") || strings.Count(string(s.Log), "have "+masked+"\n") != 3 {
			t.Errorf("log of %s: %s", s.Name, s.Log)
		}
	}
	if !slices.Equal(alerts, []string{"step-1 192.0.2.1:1", "step-2 192.0.2.1:1", "step-3 192.0.2.1:1"}) {
		t.Errorf("alerts %q", alerts)
	}
	delete(all, "OTHER")
	if _, err := Run(t.Context(), e, p, Given{Timeout: time.Minute, Secrets: all}, time.Now); hallmark.CodeOf(err) != hallmark.CodeSecretMissing {
		t.Errorf("a secret that is not there: %v", err)
	}
}

func TestJudgeSecrets(t *testing.T) {
	with := &Pipeline{Steps: []Step{{Secrets: []string{"TOKEN"}}}}
	main := []string{"refs/heads/main"}
	for _, tt := range []struct {
		p       *Pipeline
		ref     string
		refs    []string
		refused bool
	}{
		{&Pipeline{}, "", nil, false}, {with, "refs/heads/main", main, false},
		{with, "refs/heads/main", nil, true}, {with, "refs/heads/other", main, true}, {with, "", main, true}, {with, "", []string{""}, true},
	} {
		reasons := JudgeSecrets(tt.p, tt.ref, tt.refs)
		if refused := len(reasons) == 1 && reasons[0].Code == hallmark.CodeSecretRefused; refused != tt.refused {
			t.Errorf("%q with %q: %+v", tt.ref, tt.refs, reasons)
		}
	}
}

func TestCheckSecret(t *testing.T) {
	for value, good := range map[string]bool{"12345678": true, "1234567": false, "1234567\n": false, "  1234567   \n": false, "": false, strings.Repeat("x", MaxSecret): true, strings.Repeat("x", MaxSecret+1): false} {
		if err := CheckSecret("A", []byte(value)); (err == nil) != good || err != nil && hallmark.CodeOf(err) != hallmark.CodeSecretUnfit {
			t.Errorf("%.20q: %v", value, err)
		}
	}
	if err := CheckSecret("a b", []byte("12345678")); err == nil {
		t.Error("took a name with a space")
	}
}
