// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/internal/translog/translogtest"
	"github.com/hallmark-sc/hallmark/intoto"
)

// forge DIR FROM TO replaces text in the provenance of a result directory, signs
// it as the home's own builder would and has it logged: what a platform with a
// fault, or whoever stole its keys, could hand out.
func cmdForge(ts *testscript.TestScript, _ bool, args []string) {
	file := filepath.Join(ts.MkAbs(args[0]), "evidence.jsonl")
	lines := readLines(ts, file)
	for i, l := range lines {
		payload := string(payloadOf(ts, l))
		if !strings.Contains(payload, `"predicateType":"`+intoto.PredicateProvenance+`"`) {
			continue
		}
		changed := strings.Replace(payload, args[1], args[2], 1)
		if changed == payload {
			ts.Fatalf("the provenance has no %s:\n%s", args[1], payload)
		}
		lines[i] = string(signedByBuilder(ts, []byte(changed)))
		ts.Check(os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o644))
		return
	}
	ts.Fatalf("%s holds no provenance", file)
}

func signedByBuilder(ts *testscript.TestScript, payload []byte) []byte {
	home := ts.Getenv("HALLMARK_HOME")
	var id struct{ ID string }
	b, err := os.ReadFile(filepath.Join(home, "home.json"))
	ts.Check(err)
	ts.Check(json.Unmarshal(b, &id))
	domain := id.ID + ".hallmark.internal"
	keys, err := sign.Load(sign.Config{Dir: home, TrustDomain: domain, Clock: time.Now})
	ts.Check(err)
	checkpoint, err := keys.CheckpointSigner("log." + domain)
	ts.Check(err)
	ctx := context.Background()
	log, err := translog.Open(ctx, translog.Config{
		Dir: filepath.Join(home, "log"), Origin: "log." + domain, Signer: checkpoint, PublicKey: keys.Checkpoint().Key,
		Guard: translog.NewFileGuard(filepath.Join(home, "guard", "log."+domain+".json")), Index: translogtest.NewMemory(),
	})
	ts.Check(err)
	defer log.Close()
	s, err := sign.NewSigner(sign.SignerConfig{Keyring: keys, Log: log, TrustDomain: domain, Clock: time.Now})
	ts.Check(err)
	permit := &sign.Permit{
		Statement: hallmark.DigestOf(intoto.PAE(intoto.PayloadType, payload)), BuildPolicy: hallmark.DigestOf(nil), Decision: hallmark.Decision{Effect: hallmark.Allow},
	}
	bundle, err := s.Sign(ctx, sign.Request{Identity: sign.Builder, Statement: payload, Permit: permit})
	ts.Check(err)
	return bundle.JSON
}
