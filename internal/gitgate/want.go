// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitgate

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Git itself gives out any object of the store by name: in protocol 2 whatever is
// configured, in the older ones where it is no commit. What no branch and no tag
// shows is nobody's to read: a commit that was taken back, a change that has not
// landed, whatever a killed process left. So each name that a request wants is
// looked up before git sees the request.

// shown is what the references of a repository show.
var shown = []string{"refs/heads", "refs/tags"}

// asked is what a request for content asks for.
type asked struct {
	command string // of protocol 2; "" in the older ones
	wants   []string
}

// readRequest reads the packets of a request. What is no packet is refused.
func readRequest(b []byte) (asked, error) {
	var a asked
	for first := true; len(b) > 0; first = false {
		if len(b) < 4 {
			return a, fmt.Errorf("the request ends early")
		}
		n, err := strconv.ParseUint(string(b[:4]), 16, 16)
		if err != nil || n == 3 || n > 65520 || n > uint64(len(b)) && n > 2 {
			return a, fmt.Errorf("the request is no request of git's")
		}
		if n < 3 { // ends of a part
			b = b[4:]
			continue
		}
		line := string(b[4:n])
		b = b[n:]
		if command, ok := strings.CutPrefix(line, "command="); ok {
			if !first {
				return a, fmt.Errorf("the request holds two commands")
			}
			a.command = strings.TrimSuffix(command, "\n")
		}
		if !strings.HasPrefix(line, "want") {
			continue
		}
		id, _, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(line, "want "), "\n"), " ")
		if id, _, _ = strings.Cut(id, "\x00"); !strings.HasPrefix(line, "want ") || len(id) != 40 && len(id) != 64 || strings.Trim(id, "0123456789abcdef") != "" {
			return a, fmt.Errorf("the request wants %.80q, which is no name of an object", line)
		}
		a.wants = append(a.wants, id)
	}
	return a, nil
}

// upload answers a request for content.
func (s *Server) upload(w http.ResponseWriter, r *http.Request, dir string, body io.Reader) {
	b, err := io.ReadAll(body)
	if err != nil {
		http.Error(w, "the request can't be read", http.StatusBadRequest)
		return
	}
	a, err := readRequest(b)
	if err == nil && a.command != "" && a.command != "fetch" && a.command != "ls-refs" {
		err = fmt.Errorf("there is no command %.40q here", a.command)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	hidden, err := s.hidden(r.Context(), r, dir, a.wants)
	if err != nil {
		s.cfg.Log.Error("what a request wants could not be looked up", "error", err.Error())
		http.Error(w, string(hallmark.CodeGateUnavailable)+": no decision could be made", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/x-"+uploadPack+"-result")
	if hidden != "" {
		s.cfg.Log.Warn("refused", "code", hallmark.CodeObjectHidden, "object", hidden, "repository", dir)
		fmt.Fprint(w, pkt("ERR "+string(hallmark.CodeObjectHidden)+": no branch or tag shows "+hidden))
		return
	}
	abort(s.serve(r.Context(), w, s.git(r.Context(), r, dir, "upload-pack", "--stateless-rpc", dir), bytes.NewReader(b)))
}

// hidden returns a name that is wanted and that no branch or tag shows: it is at
// none of them, nor a commit in the history of one. "" is none.
func (s *Server) hidden(ctx context.Context, r *http.Request, dir string, wants []string) (string, error) {
	if len(wants) == 0 {
		return "", nil
	}
	out, err := s.ask(s.git(ctx, r, dir, append([]string{"--git-dir=" + dir, "for-each-ref", "--format=%(objectname) %(*objectname)"}, shown...)...), "")
	if err != nil {
		return "", err
	}
	tips := map[string]bool{}
	for f := range strings.FieldsSeq(out) {
		tips[f] = true
	}
	var others strings.Builder
	for _, id := range wants {
		if !tips[id] {
			fmt.Fprintln(&others, id)
		}
	}
	if others.Len() == 0 {
		return "", nil
	}
	kinds, err := s.ask(s.git(ctx, r, dir, "--git-dir="+dir, "cat-file", "--batch-check=%(objectname) %(objecttype)"), others.String())
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(kinds) {
		if id, kind, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " "); kind != "commit" {
			return id, nil
		}
	}
	beyond, err := s.ask(s.git(ctx, r, dir, "--git-dir="+dir, "rev-list", "--max-count=1", "--stdin", "--not", "--branches", "--tags"), others.String())
	if id := strings.TrimSpace(beyond); err != nil || id == "" {
		return "", err
	}
	first, _, _ := strings.Cut(others.String(), "\n")
	return first, nil
}

// ask runs a git process and returns what it says.
func (s *Server) ask(cmd *exec.Cmd, stdin string) (string, error) {
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &limited{w: &said, left: 4096}
	if err := run(cmd); err != nil {
		return "", hallmark.Errorf(hallmark.KindUnavailable, "asking git: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

func pkt(line string) string { return fmt.Sprintf("%04x%s", len(line)+4, line) }
