// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bufio"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark"
)

// TestSecretsByDescriptor: they are read once, from where they were promised, and
// stand nowhere else.
func TestSecretsByDescriptor(t *testing.T) {
	give := func(s *Spec) { s.Secrets = [][]byte{[]byte("first-value"), []byte("second-value\n")} }
	out, rep := sh(t, `ls /proc/self/fd | tr '\n' ' '; echo; env; tr '\0' ' ' </proc/self/cmdline; tr '\0' ' ' </proc/self/environ; echo "--"; cat <&3; echo; cat /dev/fd/4; echo "again:$(cat <&3)"; grep -rl "first-[v]alue" /tmp /etc /dev/shm /run 2>/dev/null`, give)
	before, after, _ := strings.Cut(out, "--\n")
	if strings.Contains(before, "-value") || after != "first-value\nsecond-value\nagain:\n" {
		t.Errorf("%+v\n%s", rep, out)
	}
	// What is given to one program is not given to the next.
	if out, _ := sh(t, `ls /proc/self/fd | tr '\n' ' '`, nil); strings.TrimSpace(out) != "0 1 2 3" {
		t.Errorf("descriptors %s", out)
	}
}

// TestOnlyTheGateway: of the host exactly one socket is reached, at its place.
func TestOnlyTheGateway(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "hallmark-gw-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	serve := func(name, answer string) string {
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				line, _ := bufio.NewReader(c).ReadString('\n')
				c.Write([]byte(answer + strings.TrimSpace(line)))
				c.Close()
			}
		}()
		return path
	}
	gateway, other := serve("packages.sock", "packages:"), serve("other.sock", "other:")
	ask := `python3 -c '
import socket, sys
for p in sys.argv[1:]:
    s = socket.socket(socket.AF_UNIX)
    try: s.connect(p); s.sendall(b"hello\n"); print(s.recv(99).decode())
    except OSError as e: print(type(e).__name__)' ` + GatewayPath + " " + gateway + " " + other
	out, rep := sh(t, ask+"; ls /run/hallmark; rm -f "+GatewayPath+"; ls /run/hallmark", func(s *Spec) { s.Gateway = gateway })
	if !strings.HasPrefix(out, "packages:hello\nFileNotFoundError\nFileNotFoundError\npackages.sock\n") || !strings.HasSuffix(out, "packages.sock\n") || len(rep.Egress) > 0 {
		t.Errorf("with the gateway: %+v\n%s", rep.Egress, out)
	}
	if out, _ := sh(t, ask, nil); out != strings.Repeat("FileNotFoundError\n", 3) {
		t.Errorf("without the gateway:\n%s", out)
	}
	for _, bad := range []string{dir, filepath.Join(dir, "absent"), "/dev/null"} {
		_, err := open(t).Run(t.Context(), Spec{Argv: []string{"true"}, Env: []string{"PATH=" + Path()}, Dir: "/", Gateway: bad})
		if hallmark.CodeOf(err) != hallmark.CodeSandboxUnavailable {
			t.Errorf("%s as the gateway: %v", bad, err)
		}
	}
}
