// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitgate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// hook is the text of a hook. It speaks with the server over two pipes that git
// passes on, so that each sees at once when the other is gone; without them, as
// when somebody runs git in the repository by hand, nothing moves.
func hook(name string) string {
	filter := ""
	if name == "reference-transaction" {
		filter = "case $1 in prepared) ;; *) exit 0 ;; esac\n"
	}
	return `#!/bin/sh
` + filter + `test "${HALLMARK_PUSH-}" = 3,4 || { echo "references here move through hallmark serve only" >&2; exit 1; }
{
	printf '%s\n' ` + name + ` "${GIT_QUARANTINE_PATH-}"
	while IFS= read -r line; do printf '%s\n' "$line"; done
	echo end
} >&3 || exit 1
while IFS= read -r line; do
	case $line in
	"say "*) printf '%s\n' "${line#say }" >&2 ;;
	yes) exit 0 ;;
	*) exit 1 ;;
	esac
done <&4
exit 1
`
}

// receive runs one push.
func (s *Server) receive(w http.ResponseWriter, r *http.Request, p *Push, body io.Reader) {
	h, err := openPipes()
	if err != nil {
		s.refuse(w, r, p.Caller, p.Repository, hallmark.Decision{}, err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		s.answer(ctx, h, p)
	}()
	cmd := s.git(ctx, r, p.Dir, "receive-pack", "--stateless-rpc", p.Dir)
	cmd.Env = append(cmd.Env, "HALLMARK_PUSH=3,4")
	cmd.ExtraFiles = h.theirs[:]
	whole := s.serve(ctx, w, cmd, body)
	cancel()
	h.close()
	<-answered
	if p.Updates != nil {
		s.cfg.Gate.Moved(p)
	}
	abort(whole)
}

// pipes are those between this process and the hooks of one push. Nobody else has
// our ends, and git and its hooks have theirs as descriptors 3 and 4.
type pipes struct {
	ask, answer *os.File // ours
	theirs      [2]*os.File
}

func openPipes() (*pipes, error) {
	ask, askEnd, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making the pipes of a push: %w", err)
	}
	answerEnd, answer, err := os.Pipe()
	if err != nil {
		ask.Close()
		askEnd.Close()
		return nil, fmt.Errorf("making the pipes of a push: %w", err)
	}
	return &pipes{ask: ask, answer: answer, theirs: [2]*os.File{askEnd, answerEnd}}, nil
}

func (h *pipes) close() {
	for _, f := range []*os.File{h.ask, h.answer, h.theirs[0], h.theirs[1]} {
		f.Close()
	}
}

// Limits on what a hook may ask.
const (
	maxLine    = 64 << 10
	maxUpdates = 20000
)

// question is what one hook asks.
type question struct {
	hook, quarantine string
	updates          []source.Update
}

func read(in *bufio.Reader) (question, error) {
	var q question
	var lines []string
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return q, err
		}
		line = strings.TrimSuffix(line, "\n")
		if line == "end" {
			break
		}
		if len(line) > maxLine || len(lines) > maxUpdates+2 {
			return q, fmt.Errorf("a push of more than %d references", maxUpdates)
		}
		lines = append(lines, line)
	}
	if len(lines) < 2 {
		return q, errors.New("the hook said nothing")
	}
	q.hook, q.quarantine = lines[0], lines[1]
	for _, l := range lines[2:] {
		f := strings.SplitN(l, " ", 3)
		if len(f) != 3 {
			return q, fmt.Errorf("the hook said %.80q", l)
		}
		q.updates = append(q.updates, source.Update{Old: f[0], New: f[1], Ref: f[2]})
	}
	return q, nil
}

// answer serves the hooks of one push until its pipes are closed.
func (s *Server) answer(ctx context.Context, h *pipes, p *Push) {
	in := bufio.NewReaderSize(h.ask, maxLine)
	allowed := false
	for {
		q, err := read(in)
		if errors.Is(err, os.ErrClosed) || errors.Is(err, io.EOF) {
			return
		}
		say := func(text string) {
			for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
				fmt.Fprintf(h.answer, "say hallmark: %s\n", plain(line))
			}
		}
		verdict := "no"
		switch {
		case err != nil:
			say(string(hallmark.CodeGateUnavailable) + ": the push could not be read: " + err.Error())
		case q.hook == "pre-receive" && p.Updates == nil:
			p.Quarantine, p.Updates = q.quarantine, q.updates
			d, err := s.cfg.Gate.Consider(ctx, p, say)
			if allowed = err == nil && d.Allowed(); allowed {
				verdict = "yes"
				break
			}
			explain(say, d, err)
			if err != nil {
				s.cfg.Log.Error("no decision", "repository", p.Repository, "error", err.Error())
			}
		case q.hook == "reference-transaction" && allowed:
			if err := s.record(ctx, p, q.updates); err != nil {
				s.cfg.Log.Error("a transition was not recorded", "repository", p.Repository, "error", err.Error())
				say(string(hallmark.CodeGateUnavailable) + ": the reference was not moved: " + err.Error())
				break
			}
			verdict = "yes"
		default:
			say(string(hallmark.CodeGateUnavailable) + ": git asked out of turn")
		}
		if _, err := fmt.Fprintln(h.answer, verdict); err != nil {
			return
		}
	}
}

// record makes transitions durable. Only what was considered may move: git locks
// each reference with the value that the client knew, so the old value is that
// of the decision or the lock fails.
func (s *Server) record(ctx context.Context, p *Push, updates []source.Update) error {
	var moving []source.Update
	for _, u := range updates {
		if u.Ref == "HEAD" { // which points at a branch, and stays; git says it moves along
			continue
		}
		i := slices.IndexFunc(p.Updates, func(c source.Update) bool { return c.Ref == u.Ref && c.New == u.New })
		if i < 0 {
			return hallmark.Errorf(hallmark.KindInternal, "%s to %s was not considered", u.Ref, u.New)
		}
		moving = append(moving, p.Updates[i])
	}
	return s.cfg.Gate.Record(ctx, p, moving)
}

// explain says a denial in plain words.
func explain(say func(string), d hallmark.Decision, err error) {
	if err != nil {
		say(string(hallmark.CodeGateUnavailable) + ": no decision could be made, so nothing was accepted: " + err.Error())
		return
	}
	if len(d.Reasons) == 1 && d.Reasons[0].Code == hallmark.CodeChangeHeld {
		say("held: no reference moved")
	} else {
		say("refused: nothing of this push was kept")
	}
	for _, r := range d.Reasons {
		say(string(r.Code) + ": " + r.Message)
		if r.Missing != "" {
			say("  missing: " + r.Missing)
		}
		if r.Nearest != "" {
			say("  nearest: " + r.Nearest)
		}
		if r.Fix != "" {
			say("  fix: " + r.Fix)
		}
	}
}

// maxSaid is how long a line to a client may be.
const maxSaid = 500

// plain makes a line safe and short enough for the terminal that it is shown on.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
	if r := []rune(s); len(r) > maxSaid {
		return string(r[:maxSaid]) + " …"
	}
	return s
}
