// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package gitgate

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/source"
)

// hook is the text of a hook. It speaks with the server over two pipes that git
// passes on, so that each sees at once when the other is gone; without them, as
// when somebody runs git in the repository by hand, nothing moves.
//
// Git hands over names of references that it has not looked at, with line feeds
// where a client wants them: every line of git's is marked as one, and an answer
// names the process that asked, so that none is taken for another's.
func hook(name string) string {
	filter := ""
	if name == "reference-transaction" {
		filter = "case $1 in prepared) ;; *) exit 0 ;; esac\n"
	}
	return `#!/bin/sh
` + filter + `test "${HALLMARK_PUSH-}" = 3,4 || { echo "references here move through hallmark serve only" >&2; exit 1; }
{
	printf '%s\n' "` + name + ` $$" "${GIT_QUARANTINE_PATH-}"
	while IFS= read -r line; do printf 'u %s\n' "$line"; done
	echo end
} >&3 || exit 1
while IFS= read -r line; do
	case $line in
	"say "*) printf '%s\n' "${line#say }" >&2 ;;
	"yes $$") exit 0 ;;
	*) exit 1 ;;
	esac
done <&4
exit 1
`
}

// receive runs one push.
func (s *Server) receive(w http.ResponseWriter, r *http.Request, p *Push, body io.Reader) {
	body, err := announced(p, body)
	if err != nil {
		http.Error(w, fmt.Sprintf("%s: %s", hallmark.CodeOf(err), err), http.StatusBadRequest)
		return
	}
	if slices.ContainsFunc(p.Announced, func(u source.Update) bool { return strings.ContainsFunc(u.Ref, unicode.IsControl) }) {
		// Such a name would be several lines, or none, to a hook.
		p.Updates = p.Announced
		d, err := s.cfg.Gate.Consider(r.Context(), p, func(string) {})
		if err == nil && d.Allowed() {
			err = hallmark.Errorf(hallmark.KindInternal, "a reference's name that can't be told to a hook was allowed")
		}
		s.refuse(w, r, p.Caller, p.Repository, d, err)
		return
	}
	give, ok := s.turns.take(r.Context(), p.Caller.Name)
	if !ok {
		s.busy(w, p)
		return
	}
	defer give()
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
	if p.Updates != nil || len(p.Announced) > 0 {
		s.cfg.Gate.Moved(p)
	}
	abort(whole)
}

// busy tells a client that its turn did not come: in a packet of git's where it
// said that it reads such ones.
func (s *Server) busy(w http.ResponseWriter, p *Push) {
	s.cfg.Log.Warn("refused", "code", hallmark.CodePushBusy, "principal", p.Caller.Name, "repository", p.Repository)
	if s.cfg.Busy != nil {
		s.cfg.Busy(p.Caller, p.Repository)
	}
	w.Header().Set("Retry-After", strconv.Itoa(int(s.cfg.Patience.Seconds())+1))
	text := fmt.Sprintf("%s: too many pushes are under way; nothing was taken, push again in a while", hallmark.CodePushBusy)
	if !p.sideband {
		http.Error(w, text, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprint(w, pkt("\x03hallmark: "+text+"\n")+"0000")
}

// maxAnnounced bounds the list of references that a push begins with; all of it is
// read before a turn is taken.
const maxAnnounced = 8 << 20

// announced reads what a push asks for and gives the request back whole.
func announced(p *Push, body io.Reader) (io.Reader, error) {
	bad := func(format string, args ...any) error {
		return hallmark.Coded(hallmark.KindInvalid, hallmark.CodePushRefs, format, args...)
	}
	var read bytes.Buffer
	in := io.TeeReader(body, &read)
	for {
		var size [4]byte
		if _, err := io.ReadFull(in, size[:]); errors.Is(err, io.EOF) && len(p.Announced) == 0 {
			break
		} else if err != nil {
			return nil, bad("the request ends early")
		}
		if read.Len() > maxAnnounced {
			return nil, bad("the list of what is pushed is longer than %d bytes", maxAnnounced)
		}
		n, err := strconv.ParseUint(string(size[:]), 16, 16)
		if n == 0 && err == nil {
			break
		}
		if err != nil || n < 4 || n > 65520 {
			return nil, bad("the request is no push")
		}
		line := make([]byte, n-4)
		if _, err := io.ReadFull(in, line); err != nil {
			return nil, bad("the request ends early")
		}
		text, abilities, _ := strings.Cut(string(line), "\x00")
		p.sideband = p.sideband || strings.Contains(" "+abilities+" ", " side-band-64k ")
		f := strings.SplitN(strings.TrimSuffix(text, "\n"), " ", 3)
		switch {
		case f[0] == "shallow" && len(f) == 2: // git refuses what needs it
		case len(f) != 3:
			return nil, bad("the request asks for %.80q, which is not taken", text)
		case len(p.Announced) == maxUpdates:
			return nil, bad("a push of more than %d references", maxUpdates)
		default:
			p.Announced = append(p.Announced, source.Update{Old: f[0], New: f[1], Ref: f[2]})
		}
	}
	return io.MultiReader(&read, body), nil
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
	hook, asker, quarantine string
	updates                 []source.Update
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
	q.hook, q.asker, _ = strings.Cut(lines[0], " ")
	q.quarantine = lines[1]
	for _, l := range lines[2:] {
		l, ok := strings.CutPrefix(l, "u ")
		f := strings.SplitN(l, " ", 3)
		if !ok || len(f) != 3 {
			return q, fmt.Errorf("the hook said %.80q", l)
		}
		q.updates = append(q.updates, source.Update{Old: f[0], New: f[1], Ref: f[2]})
	}
	return q, nil
}

// answer serves the hooks of one push until its pipes are closed.
func (s *Server) answer(ctx context.Context, h *pipes, p *Push) {
	in := bufio.NewReaderSize(h.ask, maxLine)
	allowed, broken := false, false
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
		case err != nil || broken: // who could not be understood once is told nothing but no
			allowed, broken = false, true
			if err == nil {
				err = errors.New("git goes on after it was not understood")
			}
			say(string(hallmark.CodeGateUnavailable) + ": the push could not be read: " + err.Error())
		case q.hook == "pre-receive" && p.Updates == nil:
			p.Quarantine, p.Updates = q.quarantine, q.updates
			if len(q.updates) == 0 || !slices.Equal(q.updates, p.Announced) {
				say(string(hallmark.CodeGateUnavailable) + ": git is about to do something other than was asked")
				break
			}
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
		if _, err := fmt.Fprintln(h.answer, verdict, q.asker); err != nil {
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
