// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// leaking tries to reach a name that holds a secret.
type leaking struct{ hidden []Secret }

func (l *leaking) Run(_ context.Context, c Command, _ io.Writer) (CommandReport, error) {
	l.hidden = c.Hidden
	e := Egress{Process: "hunter2222", Program: "/tmp/hunter2222", Address: "hunter2222:53", Name: "hunter2222.example"}
	c.Alert(e)
	return CommandReport{Egress: []Egress{e}}, nil
}

// TestEgressMasked: an attempt to carry a secret out by a name that is looked up
// puts it neither into the record nor into the alert, in any step.
func TestEgressMasked(t *testing.T) {
	eng := &leaking{}
	told := ""
	res, err := Run(t.Context(), eng, &Pipeline{Steps: []Step{{Name: "build", Run: "x"}}}, Given{
		Secrets: map[string][]byte{"TOKEN": []byte("hunter2222\n")},
		Alert:   func(_ string, e Egress) { told = fmt.Sprint(e) },
	}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(res.Steps[0].Report.Egress); strings.Contains(got+told, "hunter2222") || !strings.Contains(got, "***.example") || told == "" {
		t.Errorf("recorded %s, told %s", got, told)
	}
	if len(eng.hidden) != 1 { // an earlier step may have kept it
		t.Errorf("a step that names no secret is recorded without hiding %v", eng.hidden)
	}
}
