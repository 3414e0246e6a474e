// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package dockerfile

import (
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// Action is one thing to be done: exactly one of Run, Copy and Directory.
type Action struct {
	Line      int
	Run       *Run
	Copy      *Copy
	Directory string // that has to be there, for User
	User      string // of a RUN or a directory, as USER has it; empty is root
}

// Run is a command.
type Run struct {
	Argv []string
	Env  []string // complete, but for what every RUN gets
	Dir  string
}

// Copy are files that come from the context, an image or a stage.
type Copy struct {
	Context bool
	From    Base
	Sources []string // clean, relative to the root of where they come from; may be patterns
	Inline  []Inline
	Dest    string // clean and absolute
	IsDir   bool   // Dest is said to be a directory
	Owner   string // USER[:GROUP]; empty keeps that of an image or stage, and is root's for the context
	Mode    uint32 // 0 keeps
	Add     bool   // an archive would be unpacked
	Link    bool   // no link of the image may be followed on the way to Dest
}

// Inline is a file that stands in the Dockerfile.
type Inline struct {
	Name, Data string
}

// Result is what a stage comes to.
type Result struct {
	Actions []Action
	Config  v1.Config
}

// DefaultPath is the PATH of an image that sets none.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// stage is a stage that is being evaluated.
type stage struct {
	plan   *Plan
	number int
	line   int
	config v1.Config
	args   map[string]string // declared, with a value
	cmd    bool              // the stage itself has a CMD
	out    []Action
}

// Evaluate judges every instruction of a stage and says what is to be done, over
// the configuration of its base.
func (p *Plan) Evaluate(number int, base v1.Config) (Result, error) {
	st := &stage{plan: p, number: number, line: p.Stages[number].Line, config: base, args: map[string]string{}}
	if len(base.OnBuild) > 0 {
		return Result{}, p.refuse(st.line, "the base has ONBUILD triggers, which would be instructions that nobody sees here: %.200q", base.OnBuild)
	}
	c := &st.config
	c.Env, c.Cmd, c.Entrypoint, c.Shell = slices.Clone(c.Env), slices.Clone(c.Cmd), slices.Clone(c.Entrypoint), slices.Clone(c.Shell)
	c.Labels, c.Volumes, c.ExposedPorts = maps.Clone(c.Labels), maps.Clone(c.Volumes), maps.Clone(c.ExposedPorts)
	c.Hostname, c.Domainname, c.Image = "", "", ""
	if !slices.ContainsFunc(c.Env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		c.Env = append(c.Env, "PATH="+DefaultPath)
	}
	for _, cmd := range p.Stages[number].commands {
		st.line = lineOf(cmd.Location())
		if err := st.command(cmd); err != nil {
			return Result{}, err
		}
	}
	return Result{Actions: st.out, Config: st.config}, nil
}

func (st *stage) refuse(format string, args ...any) error {
	return st.plan.refuse(st.line, format, args...)
}

func (st *stage) invalid(format string, args ...any) error {
	return st.plan.invalid(st.line, format, args...)
}

// environment is ENV over ARG, as RUN and words see it.
func (st *stage) environment() environment {
	out := environment(maps.Clone(st.args))
	for _, e := range st.config.Env {
		k, v, _ := strings.Cut(e, "=")
		out[k] = v
	}
	return out
}

func (st *stage) command(cmd instructions.Command) error {
	env := st.environment()
	if x, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
		if err := x.Expand(func(word string) (string, error) { return st.plan.expand(st.line, word, env) }); err != nil {
			return st.located(err)
		}
	}
	if x, ok := cmd.(instructions.SupportsSingleWordExpansionRaw); ok {
		err := x.ExpandRaw(func(word string) (string, error) {
			lex := shell.NewLex('\\')
			lex.SkipProcessQuotes = true
			out, _, err := lex.ProcessWord(word, env)
			return out, err
		})
		if err != nil {
			return st.located(err)
		}
	}
	switch c := cmd.(type) {
	case *instructions.EnvCommand:
		return st.env(c)
	case *instructions.ArgCommand:
		return st.arg(c)
	case *instructions.LabelCommand:
		for _, kv := range c.Labels {
			if st.config.Labels == nil {
				st.config.Labels = map[string]string{}
			}
			st.config.Labels[kv.Key] = kv.Value
		}
		return nil
	case *instructions.CopyCommand:
		return st.copy(c)
	case *instructions.AddCommand:
		return st.add(c)
	case *instructions.RunCommand:
		return st.run(c)
	case *instructions.WorkdirCommand:
		return st.workdir(c)
	case *instructions.UserCommand:
		if !userName.MatchString(c.User) {
			return st.invalid("USER %.80q: want a name or a number, or USER:GROUP", c.User)
		}
		st.config.User = c.User
		return nil
	default:
		return st.described(cmd)
	}
}

// described are the instructions that only say something of the image.
func (st *stage) described(cmd instructions.Command) error {
	switch c := cmd.(type) {
	case *instructions.CmdCommand:
		words, err := st.words("CMD", c.ShellDependantCmdLine)
		st.config.Cmd, st.cmd = words, true
		return err
	case *instructions.EntrypointCommand:
		words, err := st.words("ENTRYPOINT", c.ShellDependantCmdLine)
		if st.config.Entrypoint = words; !st.cmd {
			st.config.Cmd = nil // a command of the base is none of another program's
		}
		return err
	case *instructions.ShellCommand:
		if len(c.Shell) == 0 {
			return st.invalid("SHELL: want a program")
		}
		st.config.Shell = c.Shell
	case *instructions.StopSignalCommand:
		if !signalName.MatchString(c.Signal) {
			return st.invalid("STOPSIGNAL %.80q: want a name such as SIGTERM, or a number", c.Signal)
		}
		st.config.StopSignal = c.Signal
	case *instructions.VolumeCommand:
		for _, v := range c.Volumes {
			if v == "" {
				return st.invalid("VOLUME: want a path")
			}
			if st.config.Volumes == nil {
				st.config.Volumes = map[string]struct{}{}
			}
			st.config.Volumes[v] = struct{}{}
		}
	case *instructions.ExposeCommand:
		return st.expose(c)
	case *instructions.HealthCheckCommand:
		if c.Health == nil {
			return st.invalid("HEALTHCHECK: want NONE or CMD")
		}
		h := c.Health
		if h.StartInterval != 0 {
			return st.refuse("HEALTHCHECK --start-interval is not supported")
		}
		st.config.Healthcheck = &v1.HealthConfig{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries}
		for _, d := range []time.Duration{h.Interval, h.Timeout, h.StartPeriod} {
			if d < 0 {
				return st.invalid("HEALTHCHECK: want no negative time")
			}
		}
	default:
		return st.refuse("%s is not supported", strings.ToUpper(cmd.Name()))
	}
	return nil
}

// located gives an error of the library the line of the instruction, unless it is
// ours, which has it.
func (st *stage) located(err error) error {
	if strings.HasPrefix(err.Error(), st.plan.Name+":") {
		return err
	}
	return st.invalid("%s", err)
}

var (
	userName   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?$`)
	signalName = regexp.MustCompile(`^(SIG[A-Z0-9+]{2,12}|[0-9]{1,2})$`)
	envName    = regexp.MustCompile(`^[^=\x00]+$`)
)

func (st *stage) env(c *instructions.EnvCommand) error {
	for _, kv := range c.Env {
		if !envName.MatchString(kv.Key) || strings.ContainsRune(kv.Value, 0) {
			return st.invalid("ENV %.80q can't be set", kv.Key)
		}
		at := slices.IndexFunc(st.config.Env, func(e string) bool { return strings.HasPrefix(e, kv.Key+"=") })
		if at < 0 {
			st.config.Env = append(st.config.Env, kv.Key+"="+kv.Value)
		} else {
			st.config.Env[at] = kv.Key + "=" + kv.Value
		}
	}
	return nil
}

func (st *stage) arg(c *instructions.ArgCommand) error {
	for _, a := range c.Args {
		if !envName.MatchString(a.Key) {
			return st.invalid("ARG %.80q can't be set", a.Key)
		}
		if v, ok := st.plan.given(a.Key); ok {
			st.args[a.Key] = v
		} else if a.Value != nil {
			st.args[a.Key] = *a.Value
		} else if v, ok := st.plan.args[a.Key]; ok {
			st.args[a.Key] = v
		}
	}
	return nil
}

func (st *stage) shell() []string {
	if len(st.config.Shell) > 0 {
		return slices.Clone(st.config.Shell)
	}
	return []string{"/bin/sh", "-c"}
}

// words are the words of a CMD or ENTRYPOINT.
func (st *stage) words(what string, c instructions.ShellDependantCmdLine) ([]string, error) {
	if len(c.Files) > 0 {
		return nil, st.refuse("%s: a here-document is not supported", what)
	}
	if c.PrependShell {
		return append(st.shell(), strings.Join(c.CmdLine, " ")), nil
	}
	return slices.Clone(c.CmdLine), nil
}

func (st *stage) run(c *instructions.RunCommand) error {
	// The flags were judged before; what the library made of them is asked again.
	if len(instructions.GetMounts(c)) > 0 || len(instructions.GetDevices(c)) > 0 {
		return st.refuse("RUN: nothing is mounted into a RUN")
	}
	args := slices.Clone(c.CmdLine)
	if len(c.Files) > 0 {
		if len(args) != 1 || !c.PrependShell {
			return st.invalid("RUN: a here-document needs a command for a shell")
		}
		doc, err := parser.ParseHeredoc(args[0])
		switch {
		case err == nil && doc != nil && strings.HasPrefix(c.Files[0].Data, "#!"):
			return st.refuse("RUN: a here-document that names its own program (#!) is not supported")
		case err == nil && doc != nil && len(c.Files) == 1:
			args[0] = c.Files[0].Data
		default: // the shell reads it
			for _, f := range c.Files {
				args[0] += "\n" + f.Data + f.Name
			}
		}
	}
	if c.PrependShell {
		args = append(st.shell(), args...)
	}
	if len(args) == 0 || strings.TrimSpace(strings.Join(args, "")) == "" {
		return st.invalid("RUN: want a command")
	}
	if p := st.plan; p.Stages[st.number].Platform != p.cfg.BuildPlatform {
		return st.refuse("RUN in a stage for %s: this machine runs %s", p.Stages[st.number].Platform, p.cfg.BuildPlatform)
	}
	env := st.environment()
	r := &Run{Argv: args, Dir: st.dir()}
	for _, k := range env.Keys() {
		r.Env = append(r.Env, k+"="+env[k])
	}
	st.out = append(st.out, Action{Line: st.line, Run: r, User: st.config.User})
	return nil
}

func (st *stage) dir() string { return path.Join("/", st.config.WorkingDir) }

func (st *stage) workdir(c *instructions.WorkdirCommand) error {
	if c.Path == "" || strings.ContainsRune(c.Path, 0) {
		return st.invalid("WORKDIR: want a path")
	}
	dir := c.Path
	if !path.IsAbs(dir) {
		dir = path.Join(st.dir(), dir)
	}
	st.config.WorkingDir = path.Clean(dir)
	st.out = append(st.out, Action{Line: st.line, Directory: st.config.WorkingDir, User: st.config.User})
	return nil
}

func (st *stage) copy(c *instructions.CopyCommand) error {
	out := &Copy{Context: c.From == "", Owner: c.Chown, Link: c.Link}
	if c.From != "" {
		out.From = st.plan.from[st.number][c]
	}
	return st.files("COPY", out, c.SourcesAndDest, c.Chmod)
}

var remote = regexp.MustCompile(`^(([a-zA-Z][a-zA-Z0-9+.-]*)://|git@|[^/]+@[^/]+:)`)

func (st *stage) add(c *instructions.AddCommand) error {
	for _, s := range c.SourcePaths {
		if remote.MatchString(s) || strings.HasSuffix(s, ".git") {
			return st.refuse("ADD %.200s: a build reaches no network; have it in the commit or fetched as a dependency, and COPY it", s)
		}
	}
	return st.files("ADD", &Copy{Context: true, Owner: c.Chown, Add: true, Link: c.Link}, c.SourcesAndDest, c.Chmod)
}

// files reads what COPY and ADD have in common.
func (st *stage) files(what string, out *Copy, c instructions.SourcesAndDest, chmod string) error {
	for _, s := range c.SourcePaths {
		if s == "" || strings.ContainsRune(s, 0) {
			return st.invalid("%s: a source has no name", what)
		}
		if slices.Contains(strings.Split(s, "/"), "..") {
			return st.refuse("%s %.200s: leads out of where it is copied from", what, s)
		}
		s = strings.TrimPrefix(path.Clean("/"+s), "/")
		if _, err := path.Match(s, ""); err != nil {
			return st.invalid("%s %.200q: %s", what, s, err)
		}
		out.Sources = append(out.Sources, s)
	}
	for _, s := range c.SourceContents {
		name := path.Base(path.Clean("/" + s.Path))
		if name == "/" {
			return st.invalid("%s: a here-document has no name", what)
		}
		out.Inline = append(out.Inline, Inline{Name: name, Data: s.Data})
	}
	if c.DestPath == "" || strings.ContainsRune(c.DestPath, 0) {
		return st.invalid("%s: want a path to copy to", what)
	}
	out.IsDir = strings.HasSuffix(c.DestPath, "/") || path.Base(c.DestPath) == "." || path.Base(c.DestPath) == ".."
	out.Dest = c.DestPath
	if !path.IsAbs(out.Dest) {
		out.Dest = path.Join(st.dir(), out.Dest)
	}
	out.Dest = path.Clean(out.Dest)
	if n := len(out.Sources) + len(out.Inline); n > 1 && !out.IsDir {
		return st.invalid("%s: with more than one source the last path has to end with a slash", what)
	}
	if out.Owner != "" && !userName.MatchString(out.Owner) {
		return st.invalid("%s --chown=%.80s: want a name or a number, or USER:GROUP", what, out.Owner)
	}
	if chmod != "" {
		m, err := strconv.ParseUint(chmod, 8, 32)
		if err != nil || m == 0 || m > 0o777 {
			return st.refuse("%s --chmod=%.40s: want permission bits in octal, such as 0755; set-user and set-group bits are not given", what, chmod)
		}
		out.Mode = uint32(m)
	}
	st.out = append(st.out, Action{Line: st.line, Copy: out})
	return nil
}

var portName = regexp.MustCompile(`^([0-9]{1,5})(-([0-9]{1,5}))?(/(tcp|udp|sctp))?$`)

func (st *stage) expose(c *instructions.ExposeCommand) error {
	env := st.environment()
	for _, word := range c.Ports {
		ports, err := shell.NewLex(st.plan.lex).ProcessWords(word, env)
		if err != nil {
			return st.invalid("EXPOSE: %s", err)
		}
		for _, s := range ports {
			m := portName.FindStringSubmatch(strings.ToLower(s))
			if m == nil {
				return st.invalid("EXPOSE %.80q: want PORT, PORT/udp or FROM-TO", s)
			}
			first, _ := strconv.Atoi(m[1])
			last := first
			if m[3] != "" {
				last, _ = strconv.Atoi(m[3])
			}
			if first < 1 || last > 65535 || last < first {
				return st.invalid("EXPOSE %.80q: want ports from 1 to 65535", s)
			}
			proto := m[5]
			if proto == "" {
				proto = "tcp"
			}
			if st.config.ExposedPorts == nil {
				st.config.ExposedPorts = map[string]struct{}{}
			}
			for n := first; n <= last; n++ {
				st.config.ExposedPorts[strconv.Itoa(n)+"/"+proto] = struct{}{}
			}
		}
	}
	return nil
}
