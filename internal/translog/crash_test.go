// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package translog_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/translog"
	"github.com/hallmark-sc/hallmark/internal/translog/translogtest"
	"github.com/hallmark-sc/hallmark/tlog"
)

// appendForever appends entries and prints each acknowledged one, until it is
// killed. $TRANSLOG_DIE names the step of the fifth guard write to die at.
func appendForever(dir string) {
	seed := sha256.Sum256([]byte("a key for tests"))
	key := ed25519.NewKeyFromSeed(seed[:])
	guard := translog.NewFileGuard(filepath.Join(dir, "guard", "head.json"))
	writes := 0
	guard.Break(func(s durable.Step, _ string) error {
		if s == durable.Created {
			writes++
		}
		if writes == 5 && fmt.Sprint(int(s)) == os.Getenv("TRANSLOG_DIE") {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	})
	t := panicker{}
	log, err := translog.Open(context.Background(), translog.Config{Dir: filepath.Join(dir, "log"), Origin: origin, Signer: noteSigner(t, key),
		PublicKey: key.Public(), Guard: guard, Index: translogtest.NewMemory()})
	if err != nil {
		panic(err)
	}
	entry, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				e, err := log.Append(context.Background(), request(t, entry, fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)))
				if err != nil {
					panic(err)
				}
				// One write a line: a killed process must not leave half of one.
				os.Stdout.WriteString(fmt.Sprintf("%d %x\n", e.GetLogIndex(), tlog.LeafHash(e.GetCanonicalizedBody())))
			}
		}()
	}
	select {}
}

// panicker lets helpers of tests run outside a test.
type panicker struct{ testing.TB }

func (panicker) Helper()           {}
func (panicker) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// TestKilledWhileAppending kills a process at each step of a guard write, and
// once between writes: every entry that was acknowledged stands in the log at
// its place, and the next process goes on.
func TestKilledWhileAppending(t *testing.T) {
	l := newLab(t)
	dir := filepath.Dir(l.dir)
	acknowledged := map[uint64]string{}
	for _, die := range []string{"1", "2", "3", "4", "5", ""} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "TRANSLOG_APPEND="+dir, "TRANSLOG_DIE="+die)
		cmd.Stderr = t.Output()
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for sc := bufio.NewScanner(out); sc.Scan(); n++ {
			var at uint64
			var leaf string
			if _, err := fmt.Sscan(sc.Text(), &at, &leaf); err != nil {
				t.Fatalf("%q: %v", sc.Text(), err)
			}
			acknowledged[at] = leaf
			if die == "" && n == 20 {
				cmd.Process.Kill()
			}
		}
		err = cmd.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("die at %q: the process was not killed: %v", die, err)
		}
		log := l.open() // what a crash left opens
		l.add(log, "after "+die)
		log.Close()
	}
	if len(acknowledged) < 20 {
		t.Fatalf("only %d entries were acknowledged", len(acknowledged))
	}
	size := uint64(0)
	rep, err := l.reader().Fsck(t.Context(), l.guard, l.known, everyBlob{})
	if err != nil || len(rep.Problems) > 0 {
		t.Errorf("fsck: %+v, %v", rep, err)
	}
	err = l.reader().Entries(t.Context(), rep.Entries, func(i uint64, body []byte) error {
		size++
		if want, ok := acknowledged[i]; ok {
			if got := fmt.Sprintf("%x", tlog.LeafHash(body)); got != want {
				t.Errorf("entry %d was acknowledged and is another now", i)
			}
			delete(acknowledged, i)
		}
		return nil
	})
	if err != nil || len(acknowledged) > 0 {
		t.Errorf("lost: %v, %v", acknowledged, err)
	}
	if parts, _ := filepath.Glob(filepath.Join(dir, "guard", "*")); len(parts) != 1 || strings.Contains(parts[0], "part") {
		t.Errorf("the guard's directory holds %v", parts)
	}
}

type everyBlob struct{}

func (everyBlob) Get(context.Context, hallmark.Digest) ([]byte, error) { return nil, nil }
